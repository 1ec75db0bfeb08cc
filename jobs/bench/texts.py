"""Texts to make vocabularies and corpora of: short reports, letters and recipes in ten languages, written for it."""

from __future__ import annotations

from typing import NamedTuple


class Document(NamedTuple):
    """One text."""

    id: str
    language: str
    published: str
    text: str


DOCUMENTS: tuple[Document, ...] = (
    Document(
        "harbour-report-03",
        "en",
        "2026-03-31",
        "Harbour office, first quarter. Container traffic rose by eight per cent against last year, most of it on "
        "the northern quay, where the second crane has been in service since February. Waiting time at anchor fell "
        "from eleven hours to six. Two days were lost to fog and half a day to a power failure. The dredging of the "
        "inner basin is four weeks late because the survey found an old cable that was on no chart. We ask the "
        "council to approve the replacement of the pilot boat, whose engine has now run for 19,000 hours.",
    ),
    Document(
        "letter-library",
        "en",
        "2026-04-12",
        "Dear Ms Okafor, thank you for the forty-two boxes of your grandfather's papers. We have opened the first "
        "nine. They hold his field notebooks from 1948 to 1961, about three hundred photographs and the letters you "
        "mentioned. The notebooks are dry and in good order; the photographs need new sleeves before anyone handles "
        "them. We expect to have a first list ready by the end of June and will send it to you before it goes "
        "online. Yours sincerely, the reading room.",
    ),
    Document(
        "recipe-soda-bread",
        "en",
        "2026-01-09",
        "Soda bread for a cold morning. Mix 450 g of plain flour with a level teaspoon each of salt and bicarbonate "
        "of soda. Make a well, pour in 400 ml of buttermilk, and stir with a stiff hand until it just holds "
        "together. Do not knead. Shape it into a round, cut a deep cross, and bake at 220 °C for fifteen minutes, "
        "then at 190 °C for twenty-five more. It is done when the base sounds hollow. Eat it the same day.",
    ),
    Document(
        "incident-0417",
        "en",
        "2026-04-17",
        "Incident note. At 02:10 the nightly export stopped after 61 per cent. The log ended in the middle of a "
        "line. A customer had pasted the strings <eos>, <bos> and <start_of_image> into a comment field, and the "
        "old parser took them for control tokens. No data was lost; the export was run again at 07:30 with the "
        "comment quoted. Follow-up: treat every character of a document as text, and test with this comment.",
    ),
    Document(
        "bericht-windpark",
        "de",
        "2026-02-28",
        "Monatsbericht Windpark Hohe Geest, Februar. Die zwölf Anlagen haben 9.840 Megawattstunden erzeugt, elf "
        "Prozent mehr als geplant. Anlage 7 stand fünf Tage still, weil ein Lager im Getriebe zu heiß wurde; das "
        "Ersatzteil ist bestellt und kommt in der zweiten Märzwoche. Bei Anlage 3 hat ein Blitz die Spitze eines "
        "Rotorblatts beschädigt, sie läuft bis zur Reparatur mit halber Leistung. Die Anwohner haben sich zweimal "
        "über Schattenwurf beschwert; die Abschaltzeiten wurden angepasst.",
    ),
    Document(
        "brief-kleingarten",
        "de",
        "2026-05-02",
        "Liebe Gartenfreundinnen und Gartenfreunde, am Samstag, dem 16. Mai, treffen wir uns um neun Uhr zum "
        "gemeinsamen Arbeitseinsatz. Wir wollen den Zaun am Bachweg richten, den Kompostplatz umsetzen und die "
        "Wasserleitung prüfen. Bitte bringt Handschuhe und, wer hat, eine Schubkarre mit. Für Kaffee und Kuchen "
        "ist gesorgt. Wer nicht kommen kann, meldet sich bitte bis Mittwoch bei Frau Petersen.",
    ),
    Document(
        "rezept-linsensuppe",
        "de",
        "2026-01-22",
        "Linsensuppe für vier Personen. 300 g braune Linsen waschen. Zwei Möhren, ein Stück Sellerie und eine "
        "Stange Lauch klein schneiden und in etwas Öl anschwitzen. Linsen, ein Lorbeerblatt und anderthalb Liter "
        "Brühe dazugeben und vierzig Minuten leise kochen. Zwei Kartoffeln würfeln und die letzten zwanzig Minuten "
        "mitkochen. Mit Essig, Salz und Pfeffer abschmecken. Am nächsten Tag schmeckt sie noch besser.",
    ),
    Document(
        "rapport-musee",
        "fr",
        "2026-03-15",
        "Rapport du musée municipal. L'exposition sur les canaux a reçu 14 200 visiteurs en dix semaines, dont un "
        "tiers de groupes scolaires. Les ateliers du mercredi étaient complets dès le premier mois. Le catalogue "
        "est épuisé et une deuxième impression est en cours. En revanche, la climatisation de la salle trois est "
        "tombée en panne à deux reprises, et quatre gravures ont dû être retirées par prudence. Nous proposons de "
        "prolonger l'exposition jusqu'au 30 avril.",
    ),
    Document(
        "lettre-boulangerie",
        "fr",
        "2026-04-03",
        "Chers clients, après trente et un ans derrière le comptoir, nous prenons notre retraite le 30 juin. La "
        "boulangerie ne ferme pas : notre apprenti Karim reprend le fournil avec sa sœur. Le pain au levain "
        "restera le même, la recette est affichée dans l'atelier. Il y aura une nouveauté, le dimanche matin : des "
        "brioches aux pralines. Merci pour votre fidélité et pour tous les bonjours du petit matin.",
    ),
    Document(
        "informe-riego",
        "es",
        "2026-05-11",
        "Informe de la comunidad de regantes. El embalse está al cuarenta y dos por ciento, siete puntos menos que "
        "hace un año. Se mantienen los turnos de riego de lunes a viernes y se suspenden los de fin de semana. La "
        "reparación de la acequia mayor terminó el martes; las pérdidas han bajado a la mitad. Recordamos a los "
        "socios que los contadores nuevos deben estar instalados antes del quince de junio.",
    ),
    Document(
        "receta-gazpacho",
        "es",
        "2026-06-20",
        "Gazpacho. Se trituran un kilo de tomates maduros, medio pepino, medio pimiento verde y un diente de ajo "
        "con un poco de pan del día anterior. Se añaden vinagre, sal y un buen chorro de aceite de oliva sin dejar "
        "de batir. Se cuela y se guarda al menos dos horas en la nevera. Se sirve muy frío, con trocitos de pan, "
        "pepino y huevo duro aparte.",
    ),
    Document(
        "raport-tramwaje",
        "pl",
        "2026-03-02",
        "Raport zarządu tramwajów za luty. Przewieziono 6,1 miliona pasażerów. Punktualność wyniosła 93 procent, o "
        "dwa punkty więcej niż w styczniu, mimo trzech dni silnych opadów śniegu. Na linii 8 wymieniono 1,4 "
        "kilometra szyn. Dwa nowe wagony czekają na odbiór techniczny. Najwięcej skarg dotyczyło ogrzewania w "
        "starszych wagonach; przegląd zakończy się w połowie marca.",
    ),
    Document(
        "list-szkola",
        "pl",
        "2026-04-24",
        "Drodzy Rodzice, w dniach od 8 do 10 czerwca klasy piąte pojadą na zieloną szkołę nad jezioro. Dzieci będą "
        "badać wodę, uczyć się żeglować i prowadzić dziennik pogody. Prosimy o ciepłe ubranie, latarkę i podpisaną "
        "zgodę do piątku. Koszt wynosi 320 złotych; komu trudno zapłacić całość, niech napisze do nas, rada "
        "rodziców pomoże. Telefony zostają w domu.",
    ),
    Document(
        "観測報告-05",
        "ja",
        "2026-05-31",
        "五月の観測報告。晴れた夜は十七日あり、昨年より四日多かった。新しいカメラは十二日から運用を始め、暗い星の測定誤差は約半分になった。"
        "二十日には落雷で停電し、ドームの制御装置を交換した。小惑星の追跡は予定どおり進み、三つの軌道を改良して国際センターに送った。"
        "来月は主鏡の洗浄のため、一週間ほど観測を休む予定である。",
    ),
    Document(
        "手紙-旅館",
        "ja",
        "2026-04-08",
        "このたびは当館にご予約をいただき、ありがとうございます。駅からは無料の送迎車がございますので、到着時刻を前日までにお知らせください。"
        "夕食は六時からで、川魚と山菜の料理をお出しします。苦手なものがあれば遠慮なくお申し付けください。"
        "露天風呂は朝五時から夜十一時までお使いいただけます。お気をつけてお越しください。",
    ),
    Document(
        "茶园月报",
        "zh",
        "2026-04-30",
        "茶园四月月报。今年春茶比去年早开采五天，共采鲜叶三万六千公斤，其中一级占六成。清明前后下了三场小雨，叶芽长得很好。"
        "中旬夜里气温降到两度，东坡有两亩受了冻，损失不大。新买的揉捻机已经装好，每小时可以多加工一百公斤。"
        "下个月准备修整山路，并请农技站的老师来讲一次病虫害防治。",
    ),
    Document(
        "食谱-番茄炒蛋",
        "zh",
        "2026-02-14",
        "番茄炒蛋的做法：鸡蛋四个打散，加少许盐；番茄三个切块。锅里放油烧热，倒入蛋液，凝固后盛出。再放一点油，下番茄翻炒，"
        "加半勺糖和少许盐，炒出汁水后把鸡蛋倒回锅里，翻匀即可。喜欢汤汁多一点的，可以加小半碗水，煮一分钟再出锅。",
    ),
    Document(
        "taqrir-mustashfa",
        "ar",
        "2026-03-20",
        "تقرير المستشفى عن شهر شباط. استقبل قسم الطوارئ أربعة آلاف ومئتي مريض، وانخفض متوسط الانتظار إلى خمسين دقيقة "
        "بعد افتتاح غرفة الفرز الجديدة. أُجريت ثلاثمئة وعشرون عملية جراحية، أُجّلت منها تسع بسبب نقص في الدم. بدأ تدريب "
        "الممرضين على السجل الإلكتروني وسينتهي في نيسان. نطلب من الإدارة الموافقة على شراء جهاز أشعة ثانٍ.",
    ),
    Document(
        "lettera-coro",
        "it",
        "2026-05-18",
        "Care coriste, cari coristi, il concerto di fine anno si terrà sabato 6 giugno alle ventuno nella chiesa di "
        "San Martino. La prova generale è giovedì alle venti, con l'orchestra. Vestito scuro per tutti, spartiti in "
        "cartelle nere. Chi può porti qualcosa da mangiare per dopo: l'anno scorso le torte sono finite prima che "
        "arrivassero i tenori. Grazie a Lucia per le locandine.",
    ),
    Document(
        "relatorio-praia",
        "pt",
        "2026-06-30",
        "Relatório da praia, junho. A qualidade da água foi excelente em todas as análises. Os nadadores-salvadores "
        "fizeram onze resgates, nenhum deles grave. O passadiço novo está pronto e já permite a passagem de "
        "cadeiras de rodas até à areia. O vento levou duas barracas na noite de São João. Pedimos mais três "
        "caixotes para reciclagem junto ao parque de estacionamento.",
    ),
    Document(
        "sales-2025",
        "en",
        "2026-01-15",
        "Sales by region, 2025. North 42, East 61, South 38 and West 77 thousand units. West grew fastest, after the "
        "second warehouse opened in May; South lost its largest customer in the autumn. The chart shows the same "
        "numbers. For 2026 we plan 230 thousand units in all.",
    ),
)
