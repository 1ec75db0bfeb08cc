"""The notes' grammar against sentences written by hand in each language, and the captions' and summaries' too."""

from __future__ import annotations

import pytest

from jobs.demo.world import arabic, chinese, english, german, spanish
from jobs.demo.world.facts import ACTIONS, MONTHS, THINGS, UNITS, WEEKDAYS, Amount, Date, Facts
from jobs.demo.world.lexicon import ADJECTIVES, NOUNS, PLACES, Adjective, Noun
from jobs.demo.world.meaning import Clause, Phrase, Sentence, Where
from jobs.demo.world.scenes import COLOURS, SHAPES, Group, Scene, captions
from jobs.demo.world.summaries import summaries
from jobs.demo.world.verbs import PREPOSITIONS, TIMES, VERBS, Time, Verb

NOUN: dict[str, Noun] = {noun.en: noun for noun in NOUNS}
VERB: dict[str, Verb] = {verb.en[0]: verb for verb in VERBS}
TIME: dict[str, Time] = {time.en: time for times in TIMES.values() for time in times}


def _adjective(word: str, noun: str) -> Adjective | None:
    if not word:
        return None
    return next(a for a in ADJECTIVES if a.en == word and not a.kinds.isdisjoint(NOUN[noun].kinds))


def the(noun: str, adjective: str = "", *, plural: bool = False) -> Phrase:
    return Phrase("the", NOUN[noun], _adjective(adjective, noun), plural)


def a(noun: str, adjective: str = "") -> Phrase:
    return Phrase("a", NOUN[noun], _adjective(adjective, noun))


def many(number: int, noun: str, adjective: str = "") -> Phrase:
    return Phrase("number", NOUN[noun], _adjective(adjective, noun), True, number)


def of(owner: Phrase, noun: str) -> Phrase:
    return Phrase("owned", NOUN[noun], owner=owner)


def mr(name: str) -> Phrase:
    return Phrase("title", name=name)


def mrs(name: str) -> Phrase:
    return Phrase("title", name=name, female=True)


def at(preposition: str, place: str) -> Where:
    found = next(p for p in PREPOSITIONS if p.en == preposition)
    return Where(found, next((p for p in PLACES if p.en == place), None), place)


def does(subject: Phrase, verb: str, what: Phrase | None = None, tense: str = "past", **more: object) -> Clause:
    return Clause("do", tense, subject, VERB[verb], what, **more)  # type: ignore[arg-type]


def state(kind: str, tense: str, subject: Phrase, adjective: str = "", of_noun: str = "", **more: object) -> Clause:
    return Clause(kind, tense, subject, adjective=_adjective(adjective, of_noun), **more)  # type: ignore[arg-type]


SENTENCES: list[tuple[Sentence, str, str, str, str, str]] = [
    (
        Sentence(
            does(
                the("teacher", "old"),
                "read",
                many(3, "book", "new"),
                where=at("in", "garden"),
                when=TIME["yesterday"],
            )
        ),
        "The old teacher read three new books in the garden yesterday.",
        "Der alte Lehrer las gestern im Garten drei neue Bücher.",
        "El profesor viejo leyó tres libros nuevos en el jardín ayer.",
        "那位年老的老师昨天在花园里读了三本新书。",
        "قرأ المعلم المسن ثلاثة كتب جديدة في الحديقة أمس.",
    ),
    (
        Sentence(does(mrs("Tolvik"), "open", a("window"), negative=True)),
        "Mrs Tolvik did not open a window.",
        "Frau Tolvik machte kein Fenster auf.",
        "La señora Tolvik no abrió ninguna ventana.",
        "Tolvik女士没有打开窗户。",
        "لم تفتح السيدة Tolvik نافذة.",
    ),
    (
        Sentence(does(the("nurse", "young"), "help", the("child", plural=True), "prog")),
        "The young nurse is helping the children.",
        "Die junge Krankenschwester hilft gerade den Kindern.",
        "La enfermera joven está ayudando a los niños.",
        "那位年轻的护士正在帮助那些孩子。",
        "تساعد الممرضة الشابة الأطفال.",
    ),
    (
        Sentence(
            does(
                the("farmer"),
                "sell",
                many(2, "horse", "white"),
                "pres",
                when=TIME["every Monday"],
                when_first=True,
            )
        ),
        "Every Monday the farmer sells two white horses.",
        "Jeden Montag verkauft der Bauer zwei weiße Pferde.",
        "Todos los lunes el agricultor vende dos caballos blancos.",
        "每个星期一那位农民卖两匹白色的马。",
        "كل يوم اثنين يبيع المزارع حصانين أبيضين.",
    ),
    (
        Sentence(does(the("student", plural=True), "wait", mr("Okafor"), where=at("in front of", "theatre"))),
        "The students waited for Mr Okafor in front of the theatre.",
        "Die Studenten warteten vor dem Theater auf Herrn Okafor.",
        "Los estudiantes esperaron al señor Okafor delante del teatro.",
        "那些学生在剧院前面等了Okafor先生。",
        "انتظر الطلاب السيد Okafor أمام المسرح.",
    ),
    (
        Sentence(
            does(the("doctor"), "invite", the("engineer"), negative=True),
            "because",
            state("be", "past", mr("Bell"), "tired", "man"),
        ),
        "The doctor did not invite the engineer because Mr Bell was tired.",
        "Der Arzt lud den Ingenieur nicht ein, weil Herr Bell müde war.",
        "El médico no invitó al ingeniero porque el señor Bell estaba cansado.",
        "因为Bell先生很疲惫，所以那位医生没有邀请那位工程师。",
        "لم يدع الطبيب المهندس لأن السيد Bell كان متعبا.",
    ),
    (
        Sentence(does(the("dog"), "sleep"), "when", does(the("boy"), "close", the("door"))),
        "The dog slept when the boy closed the door.",
        "Der Hund schlief, als der Junge die Tür zumachte.",
        "El perro durmió cuando el chico cerró la puerta.",
        "那个男孩关上那扇门的时候，那只狗睡了觉。",
        "نام الكلب عندما أغلق الولد الباب.",
    ),
    (
        Sentence(state("there", "pres", many(5, "cat", "black"), where=at("behind", "church"))),
        "There are five black cats behind the church.",
        "Hinter der Kirche gibt es fünf schwarze Katzen.",
        "Hay cinco gatos negros detrás de la iglesia.",
        "教堂后面有五只黑色的猫。",
        "هناك خمس قطط سوداء خلف الكنيسة.",
    ),
    (
        Sentence(
            state("than", "pres", the("tower", plural=True), "old", "tower", object=the("house", plural=True)),
        ),
        "The towers are older than the houses.",
        "Die Türme sind älter als die Häuser.",
        "Las torres son más viejas que las casas.",
        "那些塔比那些房子旧。",
        "الأبراج أقدم من المنازل.",
    ),
    (
        Sentence(state("have", "pres", the("neighbour"), object=a("bicycle"), negative=True)),
        "The neighbour does not have a bicycle.",
        "Der Nachbar hat kein Fahrrad.",
        "El vecino no tiene ninguna bicicleta.",
        "那位邻居没有自行车。",
        "ليس لدى الجار دراجة.",
    ),
    (
        Sentence(state("be", "pres", of(the("queen"), "camel"), "hungry", "camel", very=True)),
        "The queen's camel is very hungry.",
        "Das Kamel der Königin ist sehr hungrig.",
        "El camello de la reina está muy hambriento.",
        "那位女王的骆驼非常饿。",
        "جمل الملكة جائع جدا.",
    ),
    (
        Sentence(
            does(many(3, "engineer", "friendly"), "repair", of(mr("Tolvik"), "car"), when=TIME["last week"]),
        ),
        "Three friendly engineers repaired Mr Tolvik's car last week.",
        "Drei freundliche Ingenieure reparierten letzte Woche das Auto von Herrn Tolvik.",
        "Tres ingenieros amables repararon el coche del señor Tolvik la semana pasada.",
        "三位友好的工程师上周修理了Tolvik先生的汽车。",
        "أصلح ثلاثة مهندسين ودودين سيارة السيد Tolvik الأسبوع الماضي.",
    ),
    (
        Sentence(does(a("woman"), "look", the("cat")), "and", does(the("girl", plural=True), "laugh")),
        "A woman looked for the cat, and the girls laughed.",
        "Eine Frau suchte die Katze, und die Mädchen lachten.",
        "Una mujer buscó al gato y las chicas rieron.",
        "一位女士找了那只猫，那些女孩笑了。",
        "بحثت امرأة عن القطة وضحكت الفتيات.",
    ),
    (
        Sentence(state("be", "pres", the("woman", "old", plural=True), "rich", "woman", negative=True)),
        "The old women are not rich.",
        "Die alten Frauen sind nicht reich.",
        "Las mujeres viejas no son ricas.",
        "那些年老的女士不富有。",
        "ليست النساء المسنات غنيات.",
    ),
    (
        Sentence(
            state(
                "be", "past", the("teacher", plural=True), "young", "teacher", when=TIME["last year"], when_first=True
            )
        ),
        "Last year the teachers were young.",
        "Letztes Jahr waren die Lehrer jung.",
        "El año pasado los profesores eran jóvenes.",
        "去年那些老师很年轻。",
        "العام الماضي كان المعلمون شبانا.",
    ),
    (
        Sentence(does(the("painter", plural=True), "draw", the("door", "green"), negative=True)),
        "The painters did not draw the green door.",
        "Die Maler zeichneten die grüne Tür nicht.",
        "Los pintores no dibujaron la puerta verde.",
        "那些画家没有画那扇绿色的门。",
        "لم يرسم الرسامون الباب الأخضر.",
    ),
    (
        Sentence(
            state(
                "there",
                "past",
                a("table", "big"),
                where=at("in", "Velden"),
                when=TIME["in June"],
                when_first=True,
            )
        ),
        "In June there was a big table in Velden.",
        "Im Juni gab es in Velden einen großen Tisch.",
        "En junio había una mesa grande en Velden.",
        "六月Velden有一张大桌子。",
        "في يونيو كانت هناك طاولة كبيرة في Velden.",
    ),
    (
        Sentence(does(the("grandmother"), "see", of(the("neighbour"), "dog"), where=at("next to", "station"))),
        "The grandmother saw the neighbour's dog next to the station.",
        "Die Großmutter sah neben dem Bahnhof den Hund des Nachbarn.",
        "La abuela vio al perro del vecino junto a la estación.",
        "那位奶奶在车站旁边看见了那位邻居的狗。",
        "رأت الجدة كلب الجار بجانب المحطة.",
    ),
    (
        Sentence(does(many(2, "nurse", "tired"), "eat", many(2, "apple", "red"), "prog", where=at("in", "kitchen"))),
        "Two tired nurses are eating two red apples in the kitchen.",
        "Zwei müde Krankenschwestern essen gerade in der Küche zwei rote Äpfel.",
        "Dos enfermeras cansadas están comiendo dos manzanas rojas en la cocina.",
        "两位疲惫的护士正在厨房里吃两个红色的苹果。",
        "تأكل ممرضتان متعبتان تفاحتين حمراوين في المطبخ.",
    ),
]


@pytest.mark.parametrize("case", SENTENCES, ids=lambda case: case[1])
@pytest.mark.parametrize("place", range(5), ids=["en", "de", "es", "zh", "ar"])
def test_a_sentence_is_as_a_native_speaker_writes_it(case: tuple, place: int) -> None:
    say = (english, german, spanish, chinese, arabic)[place].sentence
    assert say(case[0]) == case[1 + place]


def _facts(action: str, thing: str, date: Date, number: int, unit: str) -> Facts:
    return Facts(
        "Mara Tolvik",
        next(found for found in ACTIONS if found.base == action),
        next(found for found in THINGS if found.en == thing),
        "Velden",
        date,
        Amount(number, next(found for found in UNITS if found.en == unit)),
    )


def test_a_summary_holds_five_facts_in_five_languages() -> None:
    assert summaries(_facts("repair", "bridge", Date(14, MONTHS[2]), 310, "crowns")) == {
        "en": "Mara Tolvik repaired the bridge in Velden on 14 March for 310 crowns.",
        "de": "Mara Tolvik hat am 14. März in Velden für 310 Kronen die Brücke repariert.",
        "es": "El 14 de marzo, Mara Tolvik reparó el puente en Velden por 310 coronas.",
        "zh": "Mara Tolvik于3月14日在Velden花310克朗修好了大桥。",
        "ar": "تم إصلاح الجسر في Velden يوم 14 مارس على يد Mara Tolvik بتكلفة 310 كرونات.",
    }
    assert summaries(_facts("rebuild", "town hall", Date(0, WEEKDAYS[1]), 4725, "dollars")) == {
        "en": "Mara Tolvik rebuilt the town hall in Velden on Tuesday for 4725 dollars.",
        "de": "Mara Tolvik hat am Dienstag in Velden für 4725 Dollar das Rathaus wiederaufgebaut.",
        "es": "El martes, Mara Tolvik reconstruyó el ayuntamiento en Velden por 4725 dólares.",
        "zh": "Mara Tolvik于星期二在Velden花4725美元重建了市政厅。",
        "ar": "تمت إعادة بناء مبنى البلدية في Velden يوم الثلاثاء على يد Mara Tolvik بتكلفة 4725 دولارا.",
    }


def _group(count: int, colour: str, shape: str) -> Group:
    return Group(
        count,
        next(found for found in COLOURS if found.en == colour),
        next(found for found in SHAPES if found.en == shape),
    )


@pytest.mark.parametrize(
    ("scene", "en", "de"),
    [
        (Scene((_group(1, "red", "circle"),), None), "one red circle", "ein roter Kreis"),
        (Scene((_group(1, "black", "cross"),), None), "one black cross", "ein schwarzes Kreuz"),
        (Scene((_group(4, "purple", "triangle"),), None), "four purple triangles", "vier violette Dreiecke"),
        (
            Scene((_group(3, "red", "circle"), _group(1, "blue", "square")), "above"),
            "three red circles above one blue square",
            "drei rote Kreise über einem blauen Quadrat",
        ),
        (
            Scene((_group(2, "green", "star"), _group(4, "yellow", "cross")), "left"),
            "two green stars to the left of four yellow crosses",
            "zwei grüne Sterne links von vier gelben Kreuzen",
        ),
        (
            Scene((_group(1, "yellow", "triangle"), _group(2, "yellow", "circle")), "left"),
            "one yellow triangle to the left of two yellow circles",
            "ein gelbes Dreieck links von zwei gelben Kreisen",
        ),
        (
            Scene((_group(1, "blue", "star"), _group(3, "black", "square")), "above"),
            "one blue star above three black squares",
            "ein blauer Stern über drei schwarzen Quadraten",
        ),
        (
            Scene((_group(4, "green", "cross"), _group(1, "red", "star")), "left"),
            "four green crosses to the left of one red star",
            "vier grüne Kreuze links von einem roten Stern",
        ),
    ],
)
def test_a_caption_is_inflected(scene: Scene, en: str, de: str) -> None:
    assert captions(scene) == {"en": en, "de": de}
