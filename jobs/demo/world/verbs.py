"""Verbs, prepositions and times of the notes, in five languages."""

from __future__ import annotations

from typing import NamedTuple

from .lexicon import Noun, nouns_of


class Verb(NamedTuple):
    """A verb: who does it to what, in which tenses, and its forms in each language."""

    en: tuple[str, str, str, str, str]  # base, 3rd person, past, -ing, preposition or ""
    subjects: tuple[Noun, ...]
    objects: tuple[Noun, ...]  # empty: intransitive
    tenses: tuple[str, ...]  # of past, pres, prog
    placed: bool  # whether a place may be named
    de: tuple[str, str, str, str]  # present sg and pl, past sg and pl
    de_prefix: str  # separable
    de_object: str  # acc, dat, or "auf" + accusative
    es: tuple[str, str, str, str, str]  # present sg and pl, past sg and pl, gerund
    es_se: bool
    es_a: bool  # the personal a before animals too
    zh: tuple[str, str]  # present or after 没有, past
    ar: tuple[str, str, str, str]  # past m, past f, present m, jussive m
    ar_object: str  # preposition or ""


class Preposition(NamedTuple):
    """Where a thing is: all of them rule the dative in German; zh stands after the noun."""

    en: str
    de: str
    es: str
    zh: str
    ar: str


class Time(NamedTuple):
    """A time, the same phrase wherever it stands."""

    en: str
    de: str
    es: str
    zh: str
    ar: str


PREPOSITIONS = (
    Preposition("in", "in", "en", "里", "في"),
    Preposition("in", "in", "en", "里", "في"),
    Preposition("behind", "hinter", "detrás de", "后面", "خلف"),
    Preposition("in front of", "vor", "delante de", "前面", "أمام"),
    Preposition("next to", "neben", "junto a", "旁边", "بجانب"),
)

_ALL, _PAST, _SIMPLE = ("past", "pres", "prog"), ("past",), ("past", "pres")

# English | subjects objects tenses placed | German; prefix after +, object after > | Spanish; se first, @ where animals
# take the personal a as well | Chinese | Arabic
_VERBS = """
buy buys bought buying | p at all y | kauft kaufen kaufte kauften | compra compran compró compraron comprando \
| 买 买了 | اشترى اشترت يشتري يشتر
sell sells sold selling | p at all y | verkauft verkaufen verkaufte verkauften \
| vende venden vendió vendieron vendiendo | 卖 卖了 | باع باعت يبيع يبع
see sees saw seeing | pa pat past y | sieht sehen sah sahen | @ ve ven vio vieron viendo | 看见 看见了 | رأى رأت يرى ير
find finds found finding | p at past y | findet finden fand fanden \
| @ encuentra encuentran encontró encontraron encontrando | 找到 找到了 | وجد وجدت يجد يجد
hear hears heard hearing | p pa past y | hört hören hörte hörten | @ oye oyen oyó oyeron oyendo | 听见 听见了 \
| سمع سمعت يسمع يسمع
lose loses lost losing | p c past y | verliert verlieren verlor verloren \
| pierde pierden perdió perdieron perdiendo | 弄丢 弄丢了 | فقد فقدت يفقد يفقد
forget forgets forgot forgetting | p c past y | vergisst vergessen vergaß vergaßen \
| olvida olvidan olvidó olvidaron olvidando | 忘记 忘记了 | نسي نسيت ينسى ينس
read reads read reading | p r all y | liest lesen las lasen | lee leen leyó leyeron leyendo | 读 读了 \
| قرأ قرأت يقرأ يقرأ
write writes wrote writing | p w all y | schreibt schreiben schrieb schrieben \
| escribe escriben escribió escribieron escribiendo | 写 写了 | كتب كتبت يكتب يكتب
repair repairs repaired repairing | p f all y | repariert reparieren reparierte reparierten \
| repara reparan reparó repararon reparando | 修理 修理了 | أصلح أصلحت يصلح يصلح
open opens opened opening | p o all n | macht machen machte machten +auf | abre abren abrió abrieron abriendo \
| 打开 打开了 | فتح فتحت يفتح يفتح
close closes closed closing | p o all n | macht machen machte machten +zu | cierra cierran cerró cerraron cerrando \
| 关上 关上了 | أغلق أغلقت يغلق يغلق
visit visits visited visiting | p p all y | besucht besuchen besuchte besuchten \
| visita visitan visitó visitaron visitando | 拜访 拜访了 | زار زارت يزور يزر
help helps helped helping | p p all y | hilft helfen half halfen >dat | ayuda ayudan ayudó ayudaron ayudando \
| 帮助 帮助了 | ساعد ساعدت يساعد يساعد
invite invites invited inviting | p p simple n | lädt laden lud luden +ein \
| invita invitan invitó invitaron invitando | 邀请 邀请了 | دعا دعت يدعو يدع
wait waits waited waiting for | p p prog+past y | wartet warten wartete warteten >auf \
| espera esperan esperó esperaron esperando | 等 等了 | انتظر انتظرت ينتظر ينتظر
carry carries carried carrying | p h all n | trägt tragen trug trugen | lleva llevan llevó llevaron llevando \
| 搬 搬了 | حمل حملت يحمل يحمل
look looks looked looking for | p patc prog+past y | sucht suchen suchte suchten \
| @ busca buscan buscó buscaron buscando | 找 找了 | بحث بحثت يبحث يبحث عن
bring brings brought bringing | p c simple n | bringt bringen brachte brachten +mit \
| trae traen trajo trajeron trayendo | 带来 带来了 | أحضر أحضرت يحضر يحضر
eat eats ate eating | p e all y | isst essen aß aßen | come comen comió comieron comiendo | 吃 吃了 \
| أكل أكلت يأكل يأكل
build builds built building | p b all y | baut bauen baute bauten \
| construye construyen construyó construyeron construyendo | 建造 建造了 | بنى بنت يبني يبن
draw draws drew drawing | p pat all y | zeichnet zeichnen zeichnete zeichneten \
| dibuja dibujan dibujó dibujaron dibujando | 画 画了 | رسم رسمت يرسم يرسم
sleep sleeps slept sleeping | pa - all y | schläft schlafen schlief schliefen \
| duerme duermen durmió durmieron durmiendo | 睡觉 睡了觉 | نام نامت ينام ينم
laugh laughs laughed laughing | p - all y | lacht lachen lachte lachten | ríe ríen rio rieron riendo | 笑 笑了 \
| ضحك ضحكت يضحك يضحك
dance dances danced dancing | p - all y | tanzt tanzen tanzte tanzten | baila bailan bailó bailaron bailando \
| 跳舞 跳了舞 | رقص رقصت يرقص يرقص
sing sings sang singing | p - all y | singt singen sang sangen | canta cantan cantó cantaron cantando | 唱歌 唱了歌 \
| غنى غنت يغني يغن
cry cries cried crying | p - all y | weint weinen weinte weinten | llora lloran lloró lloraron llorando | 哭 哭了 \
| بكى بكت يبكي يبك
cook cooks cooked cooking | p - all y | kocht kochen kochte kochten | cocina cocinan cocinó cocinaron cocinando \
| 做饭 做了饭 | طبخ طبخت يطبخ يطبخ
arrive arrives arrived arriving | p - simple n | kommt kommen kam kamen +an | llega llegan llegó llegaron llegando \
| 到达 到达了 | وصل وصلت يصل يصل
get gets got getting up | p - simple n | steht stehen stand standen +auf \
| se levanta levantan levantó levantaron levantando | 起床 起床了 | نهض نهضت ينهض ينهض
return returns returned returning | pa - simple n | kommt kommen kam kamen +zurück \
| regresa regresan regresó regresaron regresando | 回来 回来了 | عاد عادت يعود يعد
"""

_PAST_TIMES = """
yesterday | gestern | ayer | 昨天 | أمس
last week | letzte Woche | la semana pasada | 上周 | الأسبوع الماضي
last month | letzten Monat | el mes pasado | 上个月 | الشهر الماضي
last year | letztes Jahr | el año pasado | 去年 | العام الماضي
on Monday | am Montag | el lunes | 星期一 | يوم الاثنين
on Tuesday | am Dienstag | el martes | 星期二 | يوم الثلاثاء
on Wednesday | am Mittwoch | el miércoles | 星期三 | يوم الأربعاء
on Thursday | am Donnerstag | el jueves | 星期四 | يوم الخميس
on Friday | am Freitag | el viernes | 星期五 | يوم الجمعة
on Saturday | am Samstag | el sábado | 星期六 | يوم السبت
on Sunday | am Sonntag | el domingo | 星期日 | يوم الأحد
three days ago | vor drei Tagen | hace tres días | 三天前 | قبل ثلاثة أيام
four days ago | vor vier Tagen | hace cuatro días | 四天前 | قبل أربعة أيام
five days ago | vor fünf Tagen | hace cinco días | 五天前 | قبل خمسة أيام
six weeks ago | vor sechs Wochen | hace seis semanas | 六周前 | قبل ستة أسابيع
seven weeks ago | vor sieben Wochen | hace siete semanas | 七周前 | قبل سبعة أسابيع
eight months ago | vor acht Monaten | hace ocho meses | 八个月前 | قبل ثمانية أشهر
nine months ago | vor neun Monaten | hace nueve meses | 九个月前 | قبل تسعة أشهر
ten years ago | vor zehn Jahren | hace diez años | 十年前 | قبل عشر سنوات
in March | im März | en marzo | 三月 | في مارس
in June | im Juni | en junio | 六月 | في يونيو
in October | im Oktober | en octubre | 十月 | في أكتوبر
"""
_PRESENT_TIMES = """
every day | jeden Tag | todos los días | 每天 | كل يوم
every morning | jeden Morgen | todas las mañanas | 每天早上 | كل صباح
every evening | jeden Abend | todas las tardes | 每天晚上 | كل مساء
every week | jede Woche | todas las semanas | 每周 | كل أسبوع
every year | jedes Jahr | todos los años | 每年 | كل عام
every Monday | jeden Montag | todos los lunes | 每个星期一 | كل يوم اثنين
every Friday | jeden Freitag | todos los viernes | 每个星期五 | كل يوم جمعة
every Sunday | jeden Sonntag | todos los domingos | 每个星期日 | كل يوم أحد
"""


def _cells(line: str) -> list[list[str]]:
    return [cell.split() for cell in line.split("|")]


def _verb(line: str) -> Verb:
    en, use, de, es, zh, ar = _cells(line)
    subjects, objects, tenses, placed = use
    forms = [word for word in de if word[0] not in "+>"]
    marks = {word[0]: word[1:] for word in de if word[0] in "+>"}
    reflexive, animals = es[0] == "se", es[0] == "@"
    return Verb(
        (en[0], en[1], en[2], en[3], " ".join(en[4:])),
        nouns_of(subjects),
        () if objects == "-" else nouns_of(objects),
        {"all": _ALL, "past": _PAST, "simple": _SIMPLE, "prog+past": ("past", "prog")}[tenses],
        placed == "y",
        tuple(forms),  # type: ignore[arg-type]
        marks.get("+", ""),
        marks.get(">", "acc"),
        tuple(es[1:] if reflexive or animals else es),  # type: ignore[arg-type]
        reflexive,
        animals,
        tuple(zh),  # type: ignore[arg-type]
        tuple(ar[:4]),  # type: ignore[arg-type]
        ar[4] if len(ar) > 4 else "",
    )


def _times(table: str) -> tuple[Time, ...]:
    return tuple(Time(*(cell.strip() for cell in line.split("|"))) for line in table.strip().splitlines())


VERBS = tuple(_verb(line) for line in _VERBS.strip().splitlines())
TIMES = {"past": _times(_PAST_TIMES), "pres": _times(_PRESENT_TIMES)}
