"""The five facts of a report, and how each is said in the five languages of the summaries."""

from __future__ import annotations

from typing import NamedTuple

from .dice import Dice
from .names import person, town


class Action(NamedTuple):
    """What was done, as a verb: English forms, German participle, the others ready for the summary."""

    base: str
    past: str
    ing: str
    noun: str
    de: str
    es: str
    zh: str
    ar: str  # "it came to": agrees with the noun of action, never with the person


class Thing(NamedTuple):
    """What it was done to; every language's form carries its article."""

    en: str
    de: str
    es: str
    zh: str
    ar: str


class Unit(NamedTuple):
    """A currency; Arabic has one form after 3–10, one after 11–99 and one after whole hundreds."""

    en: str
    de: str
    es: str
    zh: str
    ar_few: str
    ar_many: str
    ar_hundred: str


class Day(NamedTuple):
    """A weekday or a month, by name."""

    en: str
    de: str
    es: str
    zh: str
    ar: str


ACTIONS = (
    Action("repair", "repaired", "repairing", "repair", "repariert", "reparó", "修好了", "تم إصلاح"),
    Action("paint", "painted", "painting", "painting", "gestrichen", "pintó", "粉刷了", "تم طلاء"),
    Action(
        "rebuild", "rebuilt", "rebuilding", "rebuilding", "wiederaufgebaut", "reconstruyó", "重建了", "تمت إعادة بناء"
    ),
    Action("buy", "bought", "buying", "purchase", "gekauft", "compró", "买下了", "تم شراء"),
    Action("clean", "cleaned", "cleaning", "cleaning", "gereinigt", "limpió", "清洁了", "تم تنظيف"),
    Action("extend", "extended", "extending", "extension", "erweitert", "amplió", "扩建了", "تم توسيع"),
    Action("inspect", "inspected", "inspecting", "inspection", "geprüft", "inspeccionó", "检查了", "تم فحص"),
    Action("restore", "restored", "restoring", "restoration", "restauriert", "restauró", "修复了", "تم ترميم"),
    Action("decorate", "decorated", "decorating", "decoration", "geschmückt", "decoró", "装饰了", "تم تزيين"),
    Action("rent", "rented", "renting", "rental", "gemietet", "alquiló", "租下了", "تم استئجار"),
)
THINGS = (
    Thing("bridge", "die Brücke", "el puente", "大桥", "الجسر"),
    Thing("school", "die Schule", "la escuela", "学校", "المدرسة"),
    Thing("library", "die Bibliothek", "la biblioteca", "图书馆", "المكتبة"),
    Thing("mill", "die Mühle", "el molino", "磨坊", "الطاحونة"),
    Thing("church", "die Kirche", "la iglesia", "教堂", "الكنيسة"),
    Thing("museum", "das Museum", "el museo", "博物馆", "المتحف"),
    Thing("station", "den Bahnhof", "la estación", "车站", "المحطة"),
    Thing("theatre", "das Theater", "el teatro", "剧院", "المسرح"),
    Thing("tower", "den Turm", "la torre", "塔楼", "البرج"),
    Thing("bakery", "die Bäckerei", "la panadería", "面包店", "المخبز"),
    Thing("hospital", "das Krankenhaus", "el hospital", "医院", "المستشفى"),
    Thing("hotel", "das Hotel", "el hotel", "酒店", "الفندق"),
    Thing("factory", "die Fabrik", "la fábrica", "工厂", "المصنع"),
    Thing("lighthouse", "den Leuchtturm", "el faro", "灯塔", "المنارة"),
    Thing("town hall", "das Rathaus", "el ayuntamiento", "市政厅", "مبنى البلدية"),
    Thing("swimming pool", "das Schwimmbad", "la piscina", "游泳池", "المسبح"),
)
UNITS = (
    Unit("crowns", "Kronen", "coronas", "克朗", "كرونات", "كرونة", "كرونة"),
    Unit("euros", "Euro", "euros", "欧元", "يورو", "يورو", "يورو"),
    Unit("dollars", "Dollar", "dólares", "美元", "دولارات", "دولارا", "دولار"),
    Unit("francs", "Franken", "francos", "法郎", "فرنكات", "فرنكا", "فرنك"),
    Unit("pounds", "Pfund", "libras", "英镑", "جنيهات", "جنيها", "جنيه"),
    Unit("rupees", "Rupien", "rupias", "卢比", "روبيات", "روبية", "روبية"),
)
MONTHS = (
    Day("January", "Januar", "enero", "1月", "يناير"),
    Day("February", "Februar", "febrero", "2月", "فبراير"),
    Day("March", "März", "marzo", "3月", "مارس"),
    Day("April", "April", "abril", "4月", "أبريل"),
    Day("May", "Mai", "mayo", "5月", "مايو"),
    Day("June", "Juni", "junio", "6月", "يونيو"),
    Day("July", "Juli", "julio", "7月", "يوليو"),
    Day("August", "August", "agosto", "8月", "أغسطس"),
    Day("September", "September", "septiembre", "9月", "سبتمبر"),
    Day("October", "Oktober", "octubre", "10月", "أكتوبر"),
    Day("November", "November", "noviembre", "11月", "نوفمبر"),
    Day("December", "Dezember", "diciembre", "12月", "ديسمبر"),
)
WEEKDAYS = (
    Day("Monday", "Montag", "lunes", "星期一", "الاثنين"),
    Day("Tuesday", "Dienstag", "martes", "星期二", "الثلاثاء"),
    Day("Wednesday", "Mittwoch", "miércoles", "星期三", "الأربعاء"),
    Day("Thursday", "Donnerstag", "jueves", "星期四", "الخميس"),
    Day("Friday", "Freitag", "viernes", "星期五", "الجمعة"),
    Day("Saturday", "Samstag", "sábado", "星期六", "السبت"),
    Day("Sunday", "Sonntag", "domingo", "星期日", "الأحد"),
)
DAYS_IN = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


class Date(NamedTuple):
    """A day of a month, or a weekday (then `day` is 0)."""

    day: int
    name: Day

    @property
    def en(self) -> str:
        """As the reports write it: `14 March` or `Tuesday`."""
        return f"{self.day} {self.name.en}" if self.day else self.name.en

    @property
    def de(self) -> str:
        """As it stands after `am`."""
        return f"{self.day}. {self.name.de}" if self.day else self.name.de

    @property
    def es(self) -> str:
        """As it stands after `el`."""
        return f"{self.day} de {self.name.es}" if self.day else self.name.es

    @property
    def zh(self) -> str:
        """Month before day."""
        return f"{self.name.zh}{self.day}日" if self.day else self.name.zh

    @property
    def ar(self) -> str:
        """As it stands after `يوم`."""
        return f"{self.day} {self.name.ar}" if self.day else self.name.ar


class Amount(NamedTuple):
    """A sum of money, in digits in every language."""

    number: int
    unit: Unit

    @property
    def en(self) -> str:
        """As the reports write it."""
        return f"{self.number} {self.unit.en}"

    @property
    def ar(self) -> str:
        """The counted noun follows the last two digits; 1 and 2 are never drawn there."""
        rest = self.number % 100
        unit = self.unit
        form = unit.ar_hundred if rest == 0 else unit.ar_few if rest <= 10 else unit.ar_many
        return f"{self.number} {form}"


class Facts(NamedTuple):
    """Who did what where, when, and for how much."""

    who: str
    action: Action
    thing: Thing
    town: str
    date: Date
    amount: Amount

    @property
    def what(self) -> str:
        """The event as an answer gives it: `repaired the bridge`."""
        return f"{self.action.past} the {self.thing.en}"


def draw_facts(dice: Dice) -> Facts:
    """Five facts of this split; what, and in which month or on which weekday, is a combination of the split too."""
    while True:
        action, thing, date = dice.pick(ACTIONS), dice.pick(THINGS), draw_date(dice)
        if dice.fits("event", event_key(action, thing, date)):
            return Facts(person(dice), action, thing, town(dice), date, draw_amount(dice))


def event_key(action: Action, thing: Thing, date: Date) -> str:
    """What the split of events is hashed from."""
    return f"{action.base} {thing.en} {date.name.en}"


def draw_date(dice: Dice) -> Date:
    """A day of a month, or in three of ten cases a weekday."""
    if dice.chance(0.3):
        return Date(0, dice.pick(WEEKDAYS))
    month = dice.between(0, 11)
    return Date(dice.between(1, DAYS_IN[month]), MONTHS[month])


def draw_amount(dice: Dice) -> Amount:
    """Two to five digits, never ending in 01 or 02, which Arabic counts in a way of its own."""
    low, high = dice.pick(((13, 99), (100, 999), (100, 999), (1000, 9999), (1000, 9999), (10000, 99999)))
    number = dice.between(low, high)
    if dice.chance(0.4) and number > 200:
        number -= number % 10 if number < 1000 else number % 50
    if number % 100 in (1, 2):
        number += 2
    return Amount(number, dice.pick(UNITS))
