"""The words around a description: nouns for the avatar, ways to begin and to end."""

from __future__ import annotations


def _parted(words: str) -> tuple[str, ...]:
    return tuple(words.split("|"))


#: Nouns by (gender, age); "" leaves that attribute open.
NOUNS: dict[tuple[str, str], tuple[str, ...]] = {key: _parted(words) for key, words in {
    ("woman", ""): "woman|lady|female|gal|chick|dame|female character|woman|lady|businesswoman|waitress|queen|"
        "actress|princess|witch|miss|feminine character|madam|heroine|hostess|policewoman|cowgirl|duchess|wife|"
        "bride|stewardess|diva|goddess|nun",
    ("man", ""): "man|guy|gentleman|dude|fellow|male|bloke|chap|gent|male character|man|guy|businessman|waiter|king|"
        "actor|prince|cowboy|fisherman|salesman|masculine character|mister|hero|policeman|fireman|duke|husband|"
        "groom|wizard|monk|lumberjack|bro",
    ("person", ""): "non-binary person|androgynous person|androgynous character|gender-neutral person|enby|"
        "nonbinary character|androgyne|genderless character|agender person|unisex character|gender-neutral avatar|"
        "person of no particular gender|genderqueer person|ambiguous-gender person|non binary human",
    ("", ""): "person|someone|somebody|character|individual|human|face|avatar|figure|head|human being|persona|model|"
        "one|doctor|pilot|chef|artist|musician|biker|sailor|farmer|nurse|student|detective|scientist|singer|dancer|"
        "teacher|soldier|nerd|hipster|athlete|traveller|librarian|bartender|programmer|gamer|boss|superhero|friend",
    ("woman", "young"): "girl|lass|teenage girl|schoolgirl|young lady|maiden|college girl|young woman|damsel|"
        "young female|daughter|young girl|girl|teen girl",
    ("woman", "middle-aged"): "mum|mom|mother|auntie|aunt|matron|middle-aged woman|middle-aged lady|mature woman|"
        "mature lady|housewife",
    ("woman", "elderly"): "granny|grandma|grandmother|nana|nan|old lady|old woman|elderly lady|elderly woman|crone|"
        "little old lady|matriarch|older woman|great-grandmother|aged woman|senior lady",
    ("man", "young"): "boy|lad|young man|teenage boy|schoolboy|young guy|college guy|young fellow|young dude|son|"
        "young gentleman|young male|teen boy|boy",
    ("man", "middle-aged"): "dad|father|uncle|middle-aged man|family man|middle-aged guy|mature man|"
        "middle-aged gentleman|daddy",
    ("man", "elderly"): "grandpa|grandfather|granddad|old man|old guy|old gentleman|gramps|geezer|patriarch|"
        "old chap|grandad|elderly man|elderly gentleman|older man|great-grandfather|old fellow|senior gentleman",
    ("", "young"): "youngster|teenager|teen|adolescent|kid|youth|young person|young adult|twentysomething|juvenile",
    ("", "middle-aged"): "middle-aged person|forty-year-old|fiftysomething|mature adult|middle-ager",
    ("", "elderly"): "old person|senior|senior citizen|pensioner|retiree|elder|oldster|grandparent|old-timer|"
        "octogenarian|septuagenarian|elderly person",
}.items()}

#: Ways to begin and to end; they say nothing about the avatar.
OPENINGS: tuple[str, ...] = _parted(
    "portrait of|a portrait of|avatar:|an avatar of|a 3d avatar of|photo of|a photo of|a picture of|"
    "headshot of|image of|render of|a 3d render of|prompt:|make me|please make|generate|create|give me|"
    "i want|i would like|show me|a cartoon of|a cartoon avatar of|a close-up of|a selfie of|"
    "a profile picture of|draw|make|a stylised portrait of|3d character:|a drawing of|digital avatar of|"
    "imagine|this is|here is|there is|we see|bust of|a bust of|could you make|can you generate|"
    "a 3d model of|a lovely portrait of|a digital human:")
CLOSINGS: tuple[str, ...] = _parted(
    "studio lighting|highly detailed|4k|8k|3d render|digital art|looking at the camera|white background|"
    "soft light|posing for a photo|posing in a studio|front view|cartoon style|stylised|high quality|"
    "best quality|pixar style|octane render|please|cute|for my profile|thanks|standing in the rain|"
    "on a beach|in the office|at a party|in the city|in the sunshine|on a sunny day|with soft shadows|"
    "unreal engine|realistic|centred|facing forward|as a game character|in the style of a mobile app|"
    "trending on artstation|simple|at home|who loves music|from Italy|from Brazil|from Kenya|"
    "from Norway|from Japan|on the street|at night|with friends|drinking tea|reading a book|after work|"
    "on holiday|with a calm background")
