"""What else stands in a report: prose without a name, a date or a sum of money."""

from __future__ import annotations

from .phrase import phrases, word_lists

LISTS = word_lists(
    """
    body: committee | council | board | working group | building office | school board | association | road office \
| audit team | parish | cooperative | women's club | choir | fire brigade
    did: discussed | examined | postponed | welcomed | approved | questioned | praised | noted | rejected \
| compared | reviewed | debated
    topic: state of the roads | new timetable | price of timber | supply of water | plan for the winter \
| noise at night | number of visitors | list of repairs | condition of the roofs | use of the old barn \
| shortage of teachers | colour of the benches | future of the fair | lighting of the square | flow of traffic \
| rules for parking | health of the trees | quality of the bread | depth of the river | care of the elderly
    when: in the morning | at noon | during the break | last year | in the spring | after lunch \
| at the end of the day | for an hour | once more | without haste | in the small hall | behind closed doors
    weather: cold | warm | windy | wet | foggy | bright | dry | stormy | mild | grey | cloudy | frosty
    season: spring | summer | autumn | winter | harvest | school year | holiday season
    people: residents | children | pupils | drivers | shopkeepers | neighbours | fishermen | farmers | visitors \
| young families | teachers | volunteers | musicians | cyclists
    feel: were pleased | were patient | complained a little | asked many questions | stayed calm \
| helped where they could | brought cake | had other worries | agreed at once | were of two minds | waited quietly \
| came in large numbers
    place: square | market | main street | river bank | old quarter | car park | churchyard | town garden | harbour \
| high road | valley | east side | upper village | railway line
    state: quiet | crowded | clean | muddy | empty | closed for a while | well lit | full of flowers \
| covered with leaves | hard to reach | open to all | slippery
    item: bench | street lamp | sign | fence | gutter | bus shelter | notice board | flag pole | drain | hedge \
| handrail | letter box | wooden gate | stone wall
    mended: replaced | painted green | moved a little | washed | tightened | taken away | looked at | counted again \
| mended at no cost | oiled
    quality: good | fair | poor | better than feared | much as before | hard to judge | a surprise | under review
    matter: budget | schedule | paperwork | insurance | training | safety plan | delivery | inventory | heating \
| cleaning
    often: often | seldom | sometimes | usually | rarely | almost always | now and then
    number: two | three | four | five | six | seven | eight | nine | ten | eleven | twelve | twenty | thirty | forty
    thing: chairs | lanterns | buckets | windows | ladders | bicycles | trees | maps | umbrellas | helmets | cables \
| pipes | blankets | shovels | bricks | planks
    event: concert | fair | open day | race | festival | exhibition | reading | football match | flower show | debate
    result: was a success | was put off | drew a small crowd | went well | ended early | had to move indoors \
| was better than ever | needed more chairs | was soon forgotten | made everyone laugh
    animal: dog | cat | goose | heron | fox | goat | crow | donkey | pigeon | hedgehog
    animal_did: slept on the steps | watched from a wall | ate somebody's lunch | had to be led away \
| crossed the road | followed the postman | sat in the rain | was fed by the children
    reason: the ground was wet | the keys were missing | the lift was out of order | the lists were long \
| the power failed | tools had to be shared | a lorry blocked the gate | the radio was too loud | the tide was high
    effect: things took longer than usual | nobody was hurt | patience was needed | a second look was useful \
| the break was extended | everyone went home early | tea was served | the doors stayed open
    """
)

FILLER = phrases(
    """
    the {body} {did} the {topic} {when}.
    the {body} {did} the {topic} and the {topic}.
    {when} the {body} {did} the {topic}.
    the {body} has {did} the {topic} before.
    the {weather} {season} made everything slower.
    it was a {weather} day and the {place} was {state}.
    the weather was {weather} at first and {weather} later.
    after a {weather} {season} the {place} was {state}.
    the {people} {feel}.
    the {people} {feel}, and the {people} {feel}.
    most of the {people} {feel}, although it was {weather}.
    some of the {people} {feel} {when}.
    the {place} was {state} and the {place} was {state}.
    the {place} is {often} {state} at this time of year.
    in the {season} the {place} is {often} {state}.
    one {item} near the {place} was {mended}.
    a {item} was {mended} and a {item} was {mended}.
    the {item} at the {place} should be {mended} soon.
    the state of the {matter} is {quality}.
    the {matter} was {quality}, and so was the {matter}.
    as for the {matter}, the {body} will return to it.
    the {people} asked about the {matter} and the {topic}.
    {number} {thing} and {number} {thing} were counted.
    there were {number} {thing} in the shed by the {place}.
    {number} new {thing} have been ordered.
    the {body} lent {number} {thing} to the {people}.
    the {event} by the {place} {result}.
    the {event} of the {body} {result}.
    because of the {weather} weather the {event} {result}.
    a {animal} {animal_did}.
    a {animal} {animal_did} while the {people} waited.
    because {reason}, {effect}.
    {effect} because {reason}.
    since {reason}, the {people} {feel}.
    {reason}, but {effect}.
    for more about the {topic} see the next report.
    nothing new can be said about the {topic}.
    a table of the {topic} is kept in the archive.
    the {people} and the {body} do not agree about the {topic}.
    the {body} {often} meets {when}.
    the minutes of the {body} are open to all {people}.
    we thank the {people} and the {body}.
    """,
    LISTS,
)
SHORT_FILLER = phrases(
    """
    the {people} {feel}.
    the {place} was {state}.
    the weather was {weather}.
    {effect}.
    {reason}.
    """,
    LISTS,
)
