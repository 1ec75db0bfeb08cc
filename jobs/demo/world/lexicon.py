"""Nouns, adjectives and places of the notes, in five languages; the tables are read once, at import."""

from __future__ import annotations

from typing import NamedTuple

VOWELS = "aeiou"


class Noun(NamedTuple):
    """A noun: German and Spanish gender and forms, Chinese measure word, Arabic gender and forms."""

    en: str
    en_pl: str
    # p person, a animal, t thing; k kid; r is read, w written, o opened, e eaten, b built, f fixed,
    # c small enough to lose, h worth carrying
    kinds: frozenset[str]
    de_gender: str
    de: str
    de_oblique: str  # accusative and dative singular; differs for weak nouns only
    de_gen: str
    de_pl: str
    es_gender: str
    es: str
    es_pl: str
    zh_measure: str
    zh: str
    ar_gender: str
    ar: str
    ar_pl: str

    @property
    def person(self) -> bool:
        """Whether it is a human being: Spanish personal a, Arabic plurals."""
        return "p" in self.kinds


class Adjective(NamedTuple):
    """An adjective; the degrees and predicate forms are empty where it has none."""

    en: str
    en_more: str
    kinds: frozenset[str]  # nouns it goes with
    de: str
    de_more: str
    es_copula: str  # ser or estar
    es: tuple[str, str, str, str]  # m, f, m plural, f plural
    zh: str  # before a noun
    zh_pred: str  # after 很, 不 or 比
    ar: tuple[str, str, str]  # m, f, m plural of people
    ar_more: str
    diptote: bool  # colours take no alif in the accusative


class Place(NamedTuple):
    """A place noun, always definite and singular."""

    en: str
    de_gender: str
    de: str
    es_gender: str
    es: str
    zh: str
    ar: str


_NOUNS = """
teacher teachers | p | m Lehrer Lehrers Lehrer | m profesor profesores | 位 老师 | m معلم معلمون
doctor doctors | p | m Arzt Arztes Ärzte | m médico médicos | 位 医生 | m طبيب أطباء
farmer farmers | p | m Bauer/Bauern Bauern Bauern | m agricultor agricultores | 位 农民 | m مزارع مزارعون
woman women | p | f Frau Frau Frauen | f mujer mujeres | 位 女士 | f امرأة نساء
man men | p | m Mann Mannes Männer | m hombre hombres | 个 男人 | m رجل رجال
girl girls | pk | n Mädchen Mädchens Mädchen | f chica chicas | 个 女孩 | f فتاة فتيات
boy boys | pk | m Junge/Jungen Jungen Jungen | m chico chicos | 个 男孩 | m ولد أولاد
child children | pk | n Kind Kindes Kinder | m niño niños | 个 孩子 | m طفل أطفال
baker bakers | p | m Bäcker Bäckers Bäcker | m panadero panaderos | 位 面包师 | m خباز خبازون
neighbour neighbours | p | m Nachbar/Nachbarn Nachbarn Nachbarn | m vecino vecinos | 位 邻居 | m جار جيران
student students | p | m Student/Studenten Studenten Studenten | m estudiante estudiantes | 个 学生 | m طالب طلاب
nurse nurses | p | f Krankenschwester Krankenschwester Krankenschwestern | f enfermera enfermeras | 位 护士 \
| f ممرضة ممرضات
driver drivers | p | m Fahrer Fahrers Fahrer | m conductor conductores | 位 司机 | m سائق سائقون
queen queens | p | f Königin Königin Königinnen | f reina reinas | 位 女王 | f ملكة ملكات
king kings | p | m König Königs Könige | m rey reyes | 位 国王 | m ملك ملوك
painter painters | p | m Maler Malers Maler | m pintor pintores | 位 画家 | m رسام رسامون
grandmother grandmothers | p | f Großmutter Großmutter Großmütter | f abuela abuelas | 位 奶奶 | f جدة جدات
guest guests | p | m Gast Gastes Gäste | m invitado invitados | 位 客人 | m ضيف ضيوف
engineer engineers | p | m Ingenieur Ingenieurs Ingenieure | m ingeniero ingenieros | 位 工程师 | m مهندس مهندسون
dog dogs | a | m Hund Hundes Hunde | m perro perros | 只 狗 | m كلب كلاب
cat cats | a | f Katze Katze Katzen | m gato gatos | 只 猫 | f قطة قطط
horse horses | a | n Pferd Pferdes Pferde | m caballo caballos | 匹 马 | m حصان أحصنة
bird birds | a | m Vogel Vogels Vögel | m pájaro pájaros | 只 鸟 | m طائر طيور
cow cows | a | f Kuh Kuh Kühe | f vaca vacas | 头 奶牛 | f بقرة أبقار
hen hens | a | f Henne Henne Hennen | f gallina gallinas | 只 母鸡 | f دجاجة دجاجات
rabbit rabbits | a | n Kaninchen Kaninchens Kaninchen | m conejo conejos | 只 兔子 | m أرنب أرانب
donkey donkeys | a | m Esel Esels Esel | m burro burros | 头 驴 | m حمار حمير
camel camels | a | n Kamel Kamels Kamele | m camello camellos | 头 骆驼 | m جمل جمال
book books | trwc | n Buch Buches Bücher | m libro libros | 本 书 | m كتاب كتب
letter letters | trwc | m Brief Briefes Briefe | f carta cartas | 封 信 | f رسالة رسائل
newspaper newspapers | trc | f Zeitung Zeitung Zeitungen | m periódico periódicos | 份 报纸 | f صحيفة صحف
poem poems | rw | n Gedicht Gedichts Gedichte | m poema poemas | 首 诗 | f قصيدة قصائد
car cars | tf | n Auto Autos Autos | m coche coches | 辆 汽车 | f سيارة سيارات
bicycle bicycles | tfh | n Fahrrad Fahrrads Fahrräder | f bicicleta bicicletas | 辆 自行车 | f دراجة دراجات
boat boats | tfb | n Boot Bootes Boote | m barco barcos | 艘 船 | m قارب قوارب
clock clocks | tfch | f Uhr Uhr Uhren | m reloj relojes | 个 钟 | f ساعة ساعات
door doors | tfo | f Tür Tür Türen | f puerta puertas | 扇 门 | m باب أبواب
window windows | tfo | n Fenster Fensters Fenster | f ventana ventanas | 扇 窗户 | f نافذة نوافذ
box boxes | toch | f Kiste Kiste Kisten | f caja cajas | 个 箱子 | m صندوق صناديق
table tables | tfh | m Tisch Tisches Tische | f mesa mesas | 张 桌子 | f طاولة طاولات
chair chairs | tfh | m Stuhl Stuhles Stühle | f silla sillas | 把 椅子 | m كرسي كراسي
suitcase suitcases | tofch | m Koffer Koffers Koffer | f maleta maletas | 个 行李箱 | f حقيبة حقائب
key keys | tc | m Schlüssel Schlüssels Schlüssel | f llave llaves | 把 钥匙 | m مفتاح مفاتيح
lamp lamps | tfch | f Lampe Lampe Lampen | f lámpara lámparas | 盏 灯 | m مصباح مصابيح
shirt shirts | tc | n Hemd Hemdes Hemden | f camisa camisas | 件 衬衫 | m قميص قمصان
hat hats | tc | m Hut Hutes Hüte | m sombrero sombreros | 顶 帽子 | f قبعة قبعات
coat coats | tc | m Mantel Mantels Mäntel | m abrigo abrigos | 件 外套 | m معطف معاطف
cup cups | tc | f Tasse Tasse Tassen | f taza tazas | 个 杯子 | m كوب أكواب
plate plates | tc | m Teller Tellers Teller | m plato platos | 个 盘子 | m طبق أطباق
apple apples | tec | m Apfel Apfels Äpfel | f manzana manzanas | 个 苹果 | f تفاحة تفاحات
orange oranges | tec | f Orange Orange Orangen | f naranja naranjas | 个 橙子 | f برتقالة برتقالات
cake cakes | tec | m Kuchen Kuchens Kuchen | m pastel pasteles | 个 蛋糕 | f كعكة كعكات
egg eggs | tec | n Ei Eies Eier | m huevo huevos | 个 鸡蛋 | f بيضة بيضات
picture pictures | tch | n Bild Bildes Bilder | m cuadro cuadros | 幅 画 | f لوحة لوحات
map maps | tc | f Landkarte Landkarte Landkarten | m mapa mapas | 张 地图 | f خريطة خرائط
ball balls | tc | m Ball Balles Bälle | f pelota pelotas | 个 球 | f كرة كرات
house houses | tb | n Haus Hauses Häuser | f casa casas | 栋 房子 | m منزل منازل
bridge bridges | b | f Brücke Brücke Brücken | m puente puentes | 座 桥 | m جسر جسور
tower towers | tb | m Turm Turmes Türme | f torre torres | 座 塔 | m برج أبراج
ring rings | tc | m Ring Ringes Ringe | m anillo anillos | 枚 戒指 | m خاتم خواتم
ladder ladders | tfh | f Leiter Leiter Leitern | f escalera escaleras | 架 梯子 | m سلم سلالم
machine machines | tfh | f Maschine Maschine Maschinen | f máquina máquinas | 台 机器 | f آلة آلات
guitar guitars | tfch | f Gitarre Gitarre Gitarren | f guitarra guitarras | 把 吉他 | m غيتار غيتارات
"""

# English comparative | kinds | German comparative | copula and forms | attribute predicate | m f m-plural | elative
_ADJECTIVES = """
big | bigger | at | groß größer | ser grande grande grandes grandes | 大 大 | كبير كبيرة كبار | أكبر
small | smaller | at | klein kleiner | ser pequeño pequeña pequeños pequeñas | 小 小 | صغير صغيرة صغار | أصغر
new | newer | t | neu neuer | ser nuevo nueva nuevos nuevas | 新 新 | جديد جديدة جدد | أحدث
old | older | t | alt älter | ser viejo vieja viejos viejas | 旧 旧 | قديم قديمة قدماء | أقدم
old | older | p | alt älter | ser viejo vieja viejos viejas | 年老的 年老 | مسن مسنة مسنون | أكبر سنا
young | younger | p | jung jünger | ser joven joven jóvenes jóvenes | 年轻的 年轻 | شاب شابة شبان | أصغر سنا
heavy | heavier | t | schwer schwerer | ser pesado pesada pesados pesadas | 沉重的 重 | ثقيل ثقيلة ثقال | أثقل
cheap | cheaper | t | billig billiger | ser barato barata baratos baratas | 便宜的 便宜 | رخيص رخيصة رخاص | أرخص
beautiful | more beautiful | at | schön schöner | ser hermoso hermosa hermosos hermosas | 美丽的 美丽 \
| جميل جميلة جميلون | أجمل
clean | cleaner | t | sauber sauberer | estar limpio limpia limpios limpias | 干净的 干净 | نظيف نظيفة نظيفون | أنظف
dirty | | at | schmutzig | estar sucio sucia sucios sucias | 脏的 脏 | متسخ متسخة متسخون |
strong | stronger | ap | stark stärker | ser fuerte fuerte fuertes fuertes | 强壮的 强壮 | قوي قوية أقوياء | أقوى
clever | cleverer | ap | klug klüger | ser inteligente inteligente inteligentes inteligentes | 聪明的 聪明 \
| ذكي ذكية أذكياء | أذكى
tired | | ap | müd | estar cansado cansada cansados cansadas | 疲惫的 疲惫 | متعب متعبة متعبون |
happy | happier | p | glücklich glücklicher | ser feliz feliz felices felices | 快乐的 快乐 | سعيد سعيدة سعداء | أسعد
friendly | friendlier | ap | freundlich freundlicher | ser amable amable amables amables | 友好的 友好 \
| ودود ودودة ودودون | أكثر ودا
tall | taller | p | groß größer | ser alto alta altos altas | 高大的 高 | طويل طويلة طوال | أطول
rich | richer | p | reich reicher | ser rico rica ricos ricas | 富有的 富有 | غني غنية أغنياء | أغنى
famous | more famous | p | berühmt berühmter | ser famoso famosa famosos famosas | 著名的 有名 \
| مشهور مشهورة مشهورون | أشهر
hungry | | ap | hungrig | estar hambriento hambrienta hambrientos hambrientas | 饥饿的 饿 | جائع جائعة جائعون |
red | | t | rot | | 红色的 | أحمر حمراء حمر |
blue | | t | blau | | 蓝色的 | أزرق زرقاء زرق |
green | | t | grün | | 绿色的 | أخضر خضراء خضر |
white | | at | weiß | | 白色的 | أبيض بيضاء بيض |
black | | at | schwarz | | 黑色的 | أسود سوداء سود |
yellow | | t | gelb | | 黄色的 | أصفر صفراء صفر |
"""
_COLOURS_ES = {
    "red": ("rojo", "roja", "rojos", "rojas"),
    "blue": ("azul", "azul", "azules", "azules"),
    "green": ("verde", "verde", "verdes", "verdes"),
    "white": ("blanco", "blanca", "blancos", "blancas"),
    "black": ("negro", "negra", "negros", "negras"),
    "yellow": ("amarillo", "amarilla", "amarillos", "amarillas"),
}

_PLACES = """
garden | m Garten | m jardín | 花园 | الحديقة
school | f Schule | f escuela | 学校 | المدرسة
library | f Bibliothek | f biblioteca | 图书馆 | المكتبة
church | f Kirche | f iglesia | 教堂 | الكنيسة
museum | n Museum | m museo | 博物馆 | المتحف
park | m Park | m parque | 公园 | المتنزه
hotel | n Hotel | m hotel | 酒店 | الفندق
hospital | n Krankenhaus | m hospital | 医院 | المستشفى
village | n Dorf | m pueblo | 村子 | القرية
forest | m Wald | m bosque | 森林 | الغابة
kitchen | f Küche | f cocina | 厨房 | المطبخ
theatre | n Theater | m teatro | 剧院 | المسرح
factory | f Fabrik | f fábrica | 工厂 | المصنع
station | m Bahnhof | f estación | 车站 | المحطة
shop | m Laden | f tienda | 商店 | المتجر
castle | n Schloss | m castillo | 城堡 | القلعة
"""


def _rows(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")] for line in table.strip().splitlines()]


def _noun(row: list[str]) -> Noun:
    en, kinds, de, es, zh, ar = (cell.split() for cell in row)
    singular, _, oblique = de[1].partition("/")
    return Noun(en[0], en[1], frozenset(kinds[0]), de[0], singular, oblique or singular, *de[2:], *es, *zh, *ar)


def _adjective(row: list[str]) -> Adjective:
    en, en_more, kinds, de, es, zh, ar, ar_more = row
    de_words, zh_words, es_words = de.split(), zh.split(), es.split()
    colour = not es_words
    es_forms = _COLOURS_ES[en] if colour else tuple(es_words[1:])
    return Adjective(
        en,
        en_more,
        frozenset(kinds),
        de_words[0],
        de_words[1] if len(de_words) > 1 else "",
        "" if colour else es_words[0],
        es_forms,  # type: ignore[arg-type]
        zh_words[0],
        zh_words[1] if len(zh_words) > 1 else "",
        tuple(ar.split()),  # type: ignore[arg-type]
        ar_more,
        colour,
    )


def _place(row: list[str]) -> Place:
    en, de, es, zh, ar = row
    (de_gender, de_word), (es_gender, es_word) = de.split(), es.split()
    return Place(en, de_gender, de_word, es_gender, es_word, zh, ar)


NOUNS = tuple(_noun(row) for row in _rows(_NOUNS))
ADJECTIVES = tuple(_adjective(row) for row in _rows(_ADJECTIVES))
PLACES = tuple(_place(row) for row in _rows(_PLACES))


def nouns_of(kinds: str) -> tuple[Noun, ...]:
    """Nouns of any of the kinds."""
    return tuple(noun for noun in NOUNS if not noun.kinds.isdisjoint(kinds))


def adjectives_of(noun: Noun) -> tuple[Adjective, ...]:
    """Adjectives that go with the noun."""
    return _FITTING[noun]


def _fits(adjective: Adjective, noun: Noun) -> bool:
    if noun.kinds.isdisjoint("pat"):  # a poem, a bridge: things that nobody sells here
        return adjective.en in ("new", "old", "beautiful") and "t" in adjective.kinds
    if "k" in noun.kinds and adjective.en == "old":
        return False
    return not adjective.kinds.isdisjoint(noun.kinds & set("pat"))


_FITTING = {noun: tuple(adjective for adjective in ADJECTIVES if _fits(adjective, noun)) for noun in NOUNS}
