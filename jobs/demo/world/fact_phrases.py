"""How a report says its facts: alone, in pairs, all at once, and against something that is not so.

`other_*` is a decoy: a name, town, date or amount the same sentence rules out. Every sentence here speaks of the one
work the report is about; sentences about anything else are in decoys.py.
"""

from __future__ import annotations

from .phrase import Phrase, phrases, word_lists

LISTS = word_lists(
    """
    work: work | job | project | task | undertaking
    finally: finally | in the end | after some discussion | as agreed | without delay
    said: said | noted | confirmed | recorded | reported
    """
)

_ALONE = {
    "what": """
        the {thing} was {past}.
        the subject of this report is {ing} the {thing}.
        this report is about the {noun} of the {thing}.
        the {work} was the {noun} of the {thing}.
        {finally} the {thing} was {past}.
        it was the {thing} that was {past}, not the {other_thing}.
        the {other_thing} was left as it was, but the {thing} was {past}.
        the council had asked for one thing only: {ing} the {thing}.
        """,
    "who": """
        the {work} was done by {who}.
        {who} did the {work}.
        {who} was in charge of the {work} and did it alone.
        {who} took on the {work} and finished it.
        the person who did the {work} was {who}.
        it was {who}, not {other_who}, who did the {work}.
        {other_who} had been asked first but declined, so {who} did the {work}.
        {who} did the {work} while {other_who} was away.
        the {work} was first given to {other_who} and then passed to {who}, who finished it.
        thanks go to {who}, who did all of the {work}.
        """,
    "where": """
        the {work} was done in {town}.
        all of this happened in {town}.
        the place of the {work} was {town}.
        {town} is the town where the {work} was done.
        the {work} was done in {town}, not in {other_town}.
        although {other_town} had been named first, the {work} was done in {town}.
        the people of {town} could watch the {work} from their windows.
        {other_town} had hoped for the {work}, but it was done in {town}.
        the {thing} in question stands in {town}.
        """,
    "when": """
        the {work} was done on {date}.
        it was on {date} that the {work} was done.
        the day of the {work} was {date}.
        {finally} the {work} was done on {date}.
        planned for {other_date}, the {work} was done on {date}.
        the {work} was done on {date} and not on {other_date}.
        the date was moved from {other_date} to {date}, and the {work} was done that day.
        on {date} the {work} was begun and ended.
        """,
    "much": """
        the {work} cost {amount}.
        the price of the {work} was {amount}.
        the bill for the {work} came to {amount}.
        {amount} was paid for the {work}.
        the {work} cost {amount} instead of {other_amount}.
        an offer of {other_amount} was refused, and {amount} was paid for the {work}.
        the sum spent on the {work} was {amount}.
        {other_amount} had been set aside for the {work}, but {amount} was spent.
        the final bill, corrected from {other_amount}, was {amount}.
        """,
}
_TOGETHER = {
    "what who": """
        {who} {past} the {thing}.
        the {thing} was {past} by {who}.
        {ing} the {thing} was the {work} of {who}.
        {finally} {who} {past} the {thing}.
        {who}, and not {other_who}, {past} the {thing}.
        the {noun} of the {thing} was the work of {who}.
        """,
    "what where": """
        the {thing} in {town} was {past}.
        in {town} the {thing} was {past}.
        this report is about the {noun} of the {thing} in {town}.
        the {thing} was {past} in {town}, while nothing was done in {other_town}.
        {ing} the {thing} in {town} is the subject of this report.
        the {noun} of the {thing} took place in {town}.
        """,
    "what when": """
        on {date} the {thing} was {past}.
        the {thing} was {past} on {date}.
        the {noun} of the {thing} took place on {date}.
        {finally} the {thing} was {past} on {date}.
        the {thing} was {past} on {date}, not on {other_date} as first planned.
        this report is about the {noun} of the {thing} on {date}.
        """,
    "what much": """
        the {thing} was {past} for {amount}.
        the {noun} of the {thing} cost {amount}.
        {ing} the {thing} cost {amount}.
        {amount} was paid for the {noun} of the {thing}.
        the {noun} of the {thing} had been put at {other_amount} but cost {amount}.
        for {amount} the {thing} was {past}.
        """,
    "who where": """
        {who} did the {work} in {town}.
        the {work} in {town} was done by {who}.
        {who} travelled to {town} and did the {work} there.
        {who} did the {work} in {town}, and {other_who} stayed in {other_town}.
        in {town} it was {who} who did the {work}.
        {who} is the one who did the {work} in {town}.
        """,
    "who when": """
        {who} did the {work} on {date}.
        on {date} {who} did the {work}.
        the {work} was done by {who} on {date}.
        {who} had time on {date} and did the {work} then.
        since {other_who} was not free on {date}, {who} did the {work} that day.
        it was {who} who did the {work} on {date}.
        """,
    "who much": """
        {who} did the {work} for {amount}.
        {who} was paid {amount} for the {work}.
        the bill {who} sent for the {work} was {amount}.
        {other_who} had asked for {other_amount}; {who} did the {work} for {amount}.
        {amount} went to {who}, who did the {work}.
        for {amount} {who} did the {work}.
        """,
    "where when": """
        the {work} was done in {town} on {date}.
        on {date} the {work} was done in {town}.
        the {work} took place on {date} in {town}.
        {town} saw the {work} done on {date}.
        all of this happened in {town} on {date}, not in {other_town} on {other_date}.
        in {town} people will remember {date} as the day of the {work}.
        """,
    "where much": """
        the {work} in {town} cost {amount}.
        in {town} {amount} was paid for the {work}.
        {town} paid {amount} for the {work}.
        the {work} was done in {town} and cost {amount}.
        {town} paid {amount} for the {work}; {other_town} had been told {other_amount}.
        the town of {town} spent {amount} on the {work}.
        """,
    "when much": """
        the {work} was done on {date} for {amount}.
        on {date} the {work} was done at a price of {amount}.
        the {work} was done on {date} and cost {amount}.
        the {work} of {date} cost {amount}.
        for {amount} the {work} was done on {date}.
        done on {date}, the {work} cost {amount} and not {other_amount}.
        """,
    "what who where": """
        {who} {past} the {thing} in {town}.
        in {town} {who} {past} the {thing}.
        the {thing} in {town} was {past} by {who}.
        it was {who} who {past} the {thing} in {town}.
        {who} and no one else {past} the {thing} in {town}.
        we can now say that {who} {past} the {thing} in {town}.
        """,
    "what who much": """
        {who} {past} the {thing} for {amount}.
        the {thing} was {past} by {who} at a cost of {amount}.
        for {amount} {who} {past} the {thing}.
        {who} was paid {amount} for {ing} the {thing}.
        the {noun} of the {thing} by {who} cost {amount}.
        {who} {past} the {thing} for {amount}, although {other_amount} had been offered.
        """,
    "where when much": """
        the {work} was done in {town} on {date} for {amount}.
        on {date} the {work} was done in {town} and cost {amount}.
        {town} paid {amount} for the {work}, which was done on {date}.
        the {work} took place on {date} in {town} at a price of {amount}.
        for {amount} the {work} was done in {town} on {date}.
        in {town} the {work} of {date} cost {amount}.
        """,
    "what who where when": """
        on {date} {who} {past} the {thing} in {town}.
        {who} {past} the {thing} in {town} on {date}.
        the {thing} in {town} was {past} on {date} by {who}.
        in {town} {who} {past} the {thing} on {date}.
        it was on {date} that {who} {past} the {thing} in {town}.
        {finally} {who} {past} the {thing} in {town} on {date}.
        """,
    "what who where when much": """
        on {date} {who} {past} the {thing} in {town} for {amount}.
        {who} {past} the {thing} in {town} on {date}, and it cost {amount}.
        the {thing} in {town} was {past} by {who} on {date} for {amount}.
        for {amount} {who} {past} the {thing} in {town} on {date}.
        in {town} {who} {past} the {thing} on {date}, at a cost of {amount}.
        it is {said} that {who} {past} the {thing} in {town} on {date} for {amount}.
        """,
}

PHRASES: dict[str, tuple[Phrase, ...]] = {key: phrases(text, LISTS) for key, text in {**_ALONE, **_TOGETHER}.items()}

# How the five facts are shared out over sentences.
PARTITIONS: tuple[tuple[str, ...], ...] = (
    ("what who where when much",),
    ("what who where when", "much"),
    ("what who where", "when much"),
    ("what who much", "where when"),
    ("what who", "where when much"),
    ("what who", "where when", "much"),
    ("what where", "who when", "much"),
    ("what where", "who", "when much"),
    ("what when", "who much", "where"),
    ("what when", "who where", "much"),
    ("what much", "who where", "when"),
    ("what much", "who when", "where"),
    ("what", "who when", "where much"),
    ("what", "who much", "where when"),
    ("what where", "who", "when", "much"),
    ("what who", "where", "when", "much"),
    ("what", "who where", "when", "much"),
    ("what", "who", "where", "when", "much"),
    ("what", "who", "where", "when", "much"),
)
SHORT_PARTITIONS = PARTITIONS[:5]
