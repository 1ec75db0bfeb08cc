"""Sentences with names, towns, dates and amounts that look like the facts, and say themselves that they are not."""

from __future__ import annotations

from .phrase import phrases, word_lists

LISTS = word_lists(
    """
    office: planning office | building office | road office | tax office | water company | fire brigade \
| post office | land registry | harbour office | health office | school board | town archive
    ago: years ago | long ago | many years before | ten years ago | in another century | a generation ago \
| twenty years ago
    later: next year | one day | in a few years | after the winter | some other time
    vehicle: bus | truck | snow plough | fire engine | van | tractor | ambulance
    """
)

DECOYS = phrases(
    """
    {other_who} of the {office} was on leave at the time.
    {other_who} of the {office} could not attend the meeting.
    {other_who} had nothing to do with any of this.
    {other_who} wrote this report but took no part in the work.
    {other_who} only took the photographs.
    {other_who} asked for a copy of the report.
    {other_who} of the {office} read the report and had no remarks.
    {other_who}, who had applied, was turned down.
    {other_who} fell ill before the work began and played no part in it.
    a letter from {other_who} arrived too late to matter.
    the chair thanked {other_who} of the {office} for the coffee.
    {other_who} retired from the {office} {ago}.
    {ago} the {other_thing} in {other_town} was {other_past} by {other_who}.
    {other_who} {other_past} the {other_thing} in {other_town} {ago}.
    a similar case in {other_town} was closed {ago}.
    {other_town} has a {other_thing} too, but it is not meant here.
    a visitor from {other_town} asked whether the {other_thing} was still open.
    the {vehicle} from {other_town} was late again.
    {other_town} may ask for the same one day.
    nothing of the kind has ever been done in {other_town}.
    the newspaper of {other_town} printed nothing about it.
    the road to {other_town} was closed for most of the week.
    {other_who} moved to {other_town} {ago}.
    {other_who} lives in {other_town} and hears little of this.
    the next meeting of the {office} will be on {other_date}.
    the meeting of {other_date} was cancelled.
    on {other_date} the {office} was closed.
    on {other_date} nothing happened because of the weather.
    {other_who} has a birthday on {other_date}.
    this report was printed on {other_date}, when all was over.
    the {other_thing} will open on {other_date} if the weather allows.
    the market of {other_date} was held as usual.
    the old estimate of {other_amount} was withdrawn.
    an offer of {other_amount} came too late and was sent back.
    a new {vehicle} would cost {other_amount} and has to wait.
    the {office} still owes {other_amount} for last winter, which has no part in this.
    {ago} the {other_thing} was {other_past} for {other_amount}.
    a rumour that spoke of {other_amount} was wrong.
    {other_who} collected {other_amount} for the {other_thing} {ago}.
    the prize of {other_amount} went to the school choir.
    {other_who} of {other_town} offered {other_amount} for the {other_thing} {ago}.
    on {other_date} {other_who} drove to {other_town} on other business.
    {other_who} will speak in {other_town} on {other_date}.
    the {other_thing} in {other_town} cost {other_amount} {ago}.
    {ago} {other_who} {other_past} the {other_thing} for {other_amount}.
    {other_who} would like to {other_base} the {other_thing} {later}.
    the {other_thing} may be {other_past} {later}.
    nobody has ever {other_past} the {other_thing}.
    {other_ing} the {other_thing} was considered and given up.
    the {other_noun} of the {other_thing} in {other_town} was put off.
    the {other_noun} of the {other_thing} by {other_who} is an old story.
    {other_who} promised to {other_base} the {other_thing} and never did.
    for {other_amount} the {other_thing} could be {other_past} {later}.
    the work was not done by {other_who}.
    {other_who} did not do the work.
    the work was not done in {other_town}.
    the work was not done on {other_date}, although some remember it so.
    the work did not cost {other_amount}.
    it is not true that {other_amount} was paid for the work.
    {other_who} of {other_town} watched the work for a while.
    {other_who} could have done the work in {other_town} on {other_date}, but nobody asked.
    {other_who} lent the tools for the work.
    on {other_date} the {office} sent {other_amount} to {other_town} for a new {vehicle}.
    """,
    LISTS,
)
