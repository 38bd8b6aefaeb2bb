"""The words for avatars: what people call every attribute value, by the place that the words take in a sentence.

A sense maps words to the attribute values that they can mean. "curls" means one hair style; "bearded" leaves three
open. Four roles say where the words fit: `adj` before a noun ("a bearded man"), `np` after "with" ("with curls"),
`wear` after "wearing" ("wearing a cap"), `state` behind the noun or after "is" ("smiling", "without a hat"). `{c}`
takes a colour word or nothing, `{p}` a possessive pronoun. `tint` lists plain colour words that fill `{c}`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sense:
    """Words of one meaning: the attribute values that they accept, and the phrases by role."""

    accepts: tuple[str, ...]
    adj: tuple[str, ...] = ()
    np: tuple[str, ...] = ()
    wear: tuple[str, ...] = ()
    state: tuple[str, ...] = ()
    tint: tuple[str, ...] = ()

    def roles(self) -> tuple[str, ...]:
        """The roles that have words, without `tint`."""
        return tuple(role for role in ("adj", "np", "wear", "state") if getattr(self, role))


def sense(accepts: str, **roles: str) -> Sense:
    """A sense from words parted by |."""
    return Sense(tuple(accepts.split("|")), **{role: tuple(words.split("|")) for role, words in roles.items()})


_AGE = (
    sense("young", adj="young|youthful|teenage|teenaged|adolescent|twenty-something|youngish|fresh-faced|baby-faced|"
          "college-age|juvenile|twentysomething|20-year-old|18 year old|young adult|quite young|very young",
          np="a young face|a youthful face|smooth young skin|a fresh young face|not a single wrinkle",
          state="in {p} twenties|in {p} early twenties|in {p} teens|of about twenty|aged 20|no older than 25|"
          "barely grown up|looking young|looking youthful|in {p} youth|around 22 years old|still young"),
    sense("middle-aged", adj="middle-aged|mature|forty-something|fortysomething|fifty-something|middle aged|"
          "45-year-old|midlife|50 year old|forty-year-old|not so young any more",
          np="a middle-aged face|a few wrinkles|some laugh lines|a mature face",
          state="in {p} forties|in {p} fifties|in middle age|of middle age|aged 45|in {p} mid-forties|"
          "of a certain age|around 50 years old|approaching fifty|in {p} late forties"),
    sense("elderly", adj="elderly|old|aged|senior|ancient|granny-aged|grandpa-aged|wrinkled|wrinkly|very old|aging|"
          "ageing|geriatric|retired|80-year-old|seventy year old|older|wizened|time-worn|venerable|elder|"
          "grandparent-aged",
          np="a wrinkled face|deep wrinkles|many wrinkles|an old face|an aged face|wrinkly skin|a lined face|"
          "crow's feet",
          state="in {p} seventies|in {p} eighties|in old age|advanced in years|aged 75|over seventy|"
          "well past retirement|looking old|about 80 years old|in {p} golden years|of old age|long retired"),
    sense("middle-aged|elderly", adj="no longer young|not young"),
)

_SKIN = (
    sense("pale", adj="pale|pale-skinned|very pale|porcelain-skinned|pasty|ghostly pale|milky-skinned|ashen|"
          "alabaster-skinned|pallid",
          np="pale skin|porcelain skin|a pale complexion|very light skin|milky skin|alabaster skin|ivory skin|"
          "a pallid face|skin pale as snow|pasty skin|a pale face|snow-white skin"),
    sense("fair", adj="fair-skinned|light-skinned|fair|peach-skinned|rosy-skinned|fair complexioned",
          np="fair skin|a fair complexion|light skin|peachy skin|rosy skin|a fair skin tone|beige skin|pinkish skin|"
          "cream skin"),
    sense("olive", adj="olive-skinned|tanned|tan|sun-kissed|mediterranean|bronzed|olive-toned|suntanned",
          np="olive skin|an olive complexion|tanned skin|a tan|sun-kissed skin|a mediterranean complexion|"
          "golden skin|olive-toned skin|honey-coloured skin|lightly tanned skin|a suntan"),
    sense("brown", adj="brown-skinned|caramel-skinned|brown|medium-brown-skinned|cinnamon-skinned",
          np="brown skin|a brown complexion|caramel skin|light brown skin|medium brown skin|cinnamon skin|"
          "tawny skin|skin the colour of caramel|bronze skin|toffee-coloured skin"),
    sense("dark brown", adj="dark brown-skinned|chocolate-skinned|deep-brown-skinned|dark-brown-skinned",
          np="dark brown skin|a dark brown complexion|chocolate skin|deep brown skin|chestnut skin|mocha skin|"
          "cocoa skin|coffee-coloured skin|walnut skin|mahogany skin|rich brown skin"),
    sense("black", adj="black|black-skinned|ebony-skinned|very dark-skinned|deep-skinned",
          np="black skin|ebony skin|very dark skin|a black complexion|deep black skin|jet-dark skin|"
          "the darkest skin|onyx skin"),
    sense("pale|fair", adj="white|caucasian|light-complexioned|nordic|european",
          np="white skin|a light complexion|light-coloured skin"),
    sense("dark brown|black", adj="dark-skinned|african|dark|afro-american|african american",
          np="dark skin|a dark complexion|a deep skin tone"),
    sense("olive|brown", adj="swarthy|latino|latin american|middle eastern|south asian|indian|brownish",
          np="a medium skin tone|swarthy skin|a warm complexion"),
)

_FACE = (
    sense("oval", adj="oval-faced|egg-faced",
          np="an oval face|an oval-shaped face|an egg-shaped face|a balanced oval face|oval features"),
    sense("round", adj="round-faced|moon-faced|chubby-cheeked|chubby|full-faced|pudgy|plump",
          np="a round face|a circular face|a chubby face|a full round face|a moon-shaped face|chubby cheeks|"
          "a plump face|round features"),
    sense("square", adj="square-faced|square-jawed|strong-jawed|broad-jawed|lantern-jawed|chiselled",
          np="a square face|a square jaw|a strong jaw|a boxy face|an angular face|a wide square jaw|a chiselled jaw|"
          "a square chin"),
    sense("long", adj="long-faced|narrow-faced|thin-faced|horse-faced|gaunt",
          np="a long face|an elongated face|a narrow face|a long thin face|an oblong face|a stretched face|"
          "a slim tall face"),
    sense("heart", adj="heart-faced|pointy-chinned|narrow-chinned",
          np="a heart-shaped face|a heart face|a pointed chin|a face like a heart|a wide forehead and a narrow chin|"
          "a v-shaped face|a delicate pointy chin"),
)

_EYE_COLOR = (
    sense("brown", tint="brown|dark brown|chocolate|chocolate-brown|hazelnut-brown|chestnut|coffee-coloured|"
          "deep brown|dark", adj="brown-eyed|dark-eyed"),
    sense("blue", tint="blue|sky-blue|ice-blue|sapphire|azure|deep blue|bright blue|cornflower-blue|baby blue|"
          "ocean-blue|steel-blue", adj="blue-eyed"),
    sense("green", tint="green|emerald|emerald-green|bright green|jade|grass-green|sea-green|cat-green|leaf-green",
          adj="green-eyed"),
    sense("gray", tint="gray|grey|silver|slate-gray|smoky grey|stormy gray|steel-grey|ash-gray|silvery",
          adj="gray-eyed|grey-eyed"),
    sense("hazel", tint="hazel|amber|golden-brown|honey-coloured|greenish-brown|light hazel|golden",
          adj="hazel-eyed|amber-eyed"),
)

_EYE_SHAPE = (
    sense("round", adj="round-eyed|big-eyed|wide-eyed|doe-eyed|saucer-eyed",
          np="round {c} eyes|big round {c} eyes|big {c} eyes|{c} eyes that are round|large {c} eyes|{c} doe eyes|"
          "circular {c} eyes|{c} puppy eyes"),
    sense("almond", adj="almond-eyed",
          np="almond {c} eyes|almond-shaped {c} eyes|{c} almond eyes|{c} eyes shaped like almonds|"
          "elegant almond {c} eyes"),
    sense("narrow", adj="narrow-eyed|squinting|squinty|slit-eyed",
          np="narrow {c} eyes|small narrow {c} eyes|thin {c} eyes|squinting {c} eyes|{c} eyes like slits|"
          "hooded {c} eyes|half-closed {c} eyes|squinty {c} eyes"),
)

_NOSE = (
    sense("average", np="an average nose|an ordinary nose|a normal nose|a regular nose|a medium nose|"
          "an unremarkable nose|a nose of average size"),
    sense("small", adj="small-nosed|button-nosed|snub-nosed",
          np="a small nose|a tiny nose|a button nose|a little nose|a cute small nose|a petite nose|a snub nose|"
          "a short nose|a dainty nose"),
    sense("large", adj="big-nosed|large-nosed",
          np="a large nose|a big nose|a huge nose|a prominent nose|an enormous nose|a long big nose|a hefty nose|"
          "a massive nose|a roman nose"),
    sense("broad", adj="broad-nosed|wide-nosed|flat-nosed",
          np="a broad nose|a wide nose|a flat wide nose|a flat nose|a fleshy wide nose|wide nostrils"),
    sense("pointed", adj="pointy-nosed|sharp-nosed|long-nosed",
          np="a pointed nose|a pointy nose|a sharp nose|a thin pointed nose|a beaky nose|a narrow pointy nose|"
          "a nose like a beak|an aquiline nose"),
)

_LIPS = (
    sense("average", np="average lips|ordinary lips|normal lips|regular lips|medium lips|lips of average thickness"),
    sense("thin", adj="thin-lipped|tight-lipped",
          np="thin lips|narrow lips|slim lips|very thin lips|fine lips|a thin mouth|slender lips"),
    sense("full", adj="full-lipped|thick-lipped|big-lipped",
          np="full lips|thick lips|plump lips|big lips|pouty lips|voluptuous lips|juicy lips|a full mouth|"
          "puffy lips|luscious lips"),
)

_EXPRESSION = (
    sense("neutral", adj="neutral|calm|serious|expressionless|composed|stoic|blank-faced|deadpan|emotionless|"
          "straight-faced|stern-faced",
          np="a neutral expression|a straight face|a blank expression|a calm expression|no expression|"
          "a neutral look|a relaxed face|a serious face|a poker face",
          state="looking neutral|looking calm|not smiling|showing no emotion|looking serious|at rest|"
          "staring blankly|with mouth closed and calm"),
    sense("smiling", adj="smiling|grinning|friendly|pleased|content|smiley|cheery|beaming",
          np="a smile|a friendly smile|a gentle smile|a warm smile|a big smile|a slight smile|a grin|a kind smile|"
          "a happy smile|a smile on {p} face|a broad grin",
          state="smiling|smiling warmly|smiling softly|grinning|beaming|looking pleased|looking friendly|"
          "with lips curved in a smile|smiling at the camera|grinning broadly"),
    sense("laughing", adj="laughing|giggling|chuckling|hilarious",
          np="a laugh|a big laugh|an open-mouthed laugh|a laughing mouth|a hearty laugh|a laughing face|"
          "a wide toothy laugh",
          state="laughing|laughing out loud|giggling|cracking up|laughing heartily|chuckling|in fits of laughter|"
          "roaring with laughter|in stitches|guffawing|howling with laughter|having a good laugh"),
    sense("surprised", adj="surprised|astonished|shocked|amazed|startled|stunned|gasping|flabbergasted|bewildered",
          np="a surprised look|an astonished face|a surprised expression|an open mouth of surprise|"
          "a shocked expression|raised eyebrows and an open mouth|a gasp|a look of amazement|a stunned look",
          state="looking surprised|looking shocked|in surprise|gasping|in shock|open-mouthed|"
          "with {p} mouth open in surprise|taken aback|looking amazed|in awe|with jaw dropped"),
    sense("sad", adj="sad|unhappy|gloomy|miserable|melancholic|sorrowful|mournful|downcast|depressed|tearful|glum|"
          "weepy|heartbroken|dejected|wistful",
          np="a sad face|a sad expression|a frown of sadness|a downturned mouth|a gloomy look|a mournful expression|"
          "a sorrowful look|a sad look",
          state="looking sad|looking unhappy|about to cry|in sorrow|feeling down|looking miserable|"
          "looking depressed|close to tears|feeling blue|looking gloomy|pouting sadly|grieving"),
    sense("angry", adj="angry|furious|mad|annoyed|irate|grumpy|enraged|cross|scowling|raging|fuming|hostile|"
          "frowning|irritated|ill-tempered",
          np="an angry face|an angry expression|a scowl|a furious look|an angry frown|a glare|a face like thunder|"
          "a grumpy expression|lowered brows",
          state="looking angry|scowling|glaring|frowning angrily|looking furious|in a rage|fuming|looking annoyed|"
          "looking mad|in a bad mood|with an angry stare|furrowing {p} brow|losing {p} temper"),
    sense("smiling|laughing", adj="happy|cheerful|joyful|merry|jolly|joyous|delighted|radiant",
          np="a happy expression|a cheerful face|a happy face",
          state="looking happy|full of joy|looking cheerful|in a good mood|in high spirits"),
)

_HAIR = (
    sense("bald", adj="bald|bald-headed|hairless|shaven-headed|completely bald|balding",
          np="no hair|a bald head|a shaved head|a shiny bald head|a smooth head|a clean-shaven head|no hair at all|"
          "a hairless head|a bare scalp|a bald pate",
          state="without any hair|without hair|with {p} head shaved|lacking hair|with not a hair on {p} head|"
          "totally bald|gone bald"),
    sense("buzz cut", adj="buzz-cut|crew-cut|buzzed|close-cropped",
          np="a {c} buzz cut|a {c} buzzcut|a {c} crew cut|very short {c} hair|a {c} military cut|"
          "closely cropped {c} hair|{c} buzzed hair|a short {c} buzz cut|shaved {c} sides and top|"
          "{c} hair shorn to a few millimetres|{c} stubble on {p} head|a {c} number two cut|clipped {c} hair|"
          "extremely short {c} hair|shorn {c} hair"),
    sense("short", adj="short-haired",
          np="short {c} hair|a short {c} haircut|{c} hair cut short|a {c} pixie cut|cropped {c} hair|a {c} crop|"
          "neat short {c} hair|simple short {c} hair|a {c} short cut|trimmed {c} hair|short plain {c} hair|"
          "a {c} short back and sides"),
    sense("side part", np="a {c} side part|{c} hair parted on the side|{c} side-parted hair|a {c} side parting|"
          "{c} hair combed to the side|neatly parted {c} hair|a slick {c} side part|{c} hair with a parting|"
          "side-swept {c} hair|parted {c} hair|{c} hair combed over|combed {c} hair", adj="side-parted"),
    sense("curly", adj="curly-haired|curly-headed|frizzy-haired|curly|ringleted",
          np="curly {c} hair|{c} curls|{c} ringlets|a mop of {c} curls|{c} curly hair|a curly {c} mop|"
          "tight {c} curls|frizzy {c} hair|bouncy {c} curls|{c} corkscrew curls|wild {c} curls|thick curly {c} hair|"
          "{c} hair full of curls|messy {c} curls|coiled {c} hair|a perm of {c} hair"),
    sense("afro", adj="afro-haired|afro",
          np="an {c} afro|a big {c} afro|an {c} afro hairstyle|{c} afro hair|a huge round {c} afro|a {c} fro|"
          "a giant {c} afro|a {c} natural afro|a fluffy {c} ball of hair|a {c} jackson five hairdo"),
    sense("bob", adj="bob-haired|bobbed",
          np="a {c} bob|a {c} bob cut|a {c} bob haircut|chin-length {c} hair|a sleek {c} bob|{c} hair in a bob|"
          "a straight {c} bob|{c} bobbed hair|{c} jaw-length hair|a {c} pageboy|{c} hair cut to the chin|"
          "a {c} pageboy cut"),
    sense("long straight", np="long straight {c} hair|straight {c} hair|straight long {c} hair|long smooth {c} hair|"
          "sleek long {c} hair|{c} hair that is long and straight|waist-length straight {c} hair|"
          "long straightened {c} hair|long sleek {c} locks|poker-straight {c} hair|long lank {c} hair|"
          "straight {c} tresses", adj="straight-haired"),
    sense("long wavy", adj="wavy-haired",
          np="long wavy {c} hair|wavy {c} hair|wavy long {c} hair|long {c} waves|{c} waves|flowing wavy {c} hair|"
          "{c} hair in long waves|{c} beach waves|loose {c} waves|{c} hair that is long and wavy|"
          "long undulating {c} hair|rippling {c} locks|{c} mermaid hair"),
    sense("ponytail", adj="ponytailed|pony-tailed",
          np="a {c} ponytail|a high {c} ponytail|{c} hair in a ponytail|{c} hair tied back|a long {c} ponytail|"
          "{c} hair pulled back in a ponytail|a {c} pony tail|{c} hair gathered in a ponytail|a {c} pony|"
          "{c} hair tied behind {p} head|a swinging {c} ponytail"),
    sense("bun", np="a {c} bun|{c} hair in a bun|a {c} topknot|{c} hair tied up in a bun|a {c} hair bun|"
          "{c} hair put up|a {c} updo|a {c} top knot|a tight {c} bun|{c} hair up in a knot|a messy {c} bun|"
          "a {c} chignon|a neat {c} bun", adj="bun-wearing"),
    sense("mohawk", adj="mohawked|mohawk-wearing|punk-haired",
          np="a {c} mohawk|a {c} mohican|a {c} mohawk hairstyle|a spiky {c} mohawk|a {c} punk mohawk|"
          "a tall {c} mohawk|a {c} strip of spiky hair|{c} hair in a mohawk|{c} spikes along {p} head|"
          "a {c} punk hairdo|a {c} hair crest"),
    sense("long straight|long wavy", adj="long-haired",
          np="long {c} hair|long flowing {c} hair|{c} hair down to {p} shoulders|shoulder-length {c} hair|"
          "waist-length {c} hair|long {c} locks|{c} tresses|flowing {c} hair|very long {c} hair|a long {c} mane"),
    sense("long wavy|curly", np="{c} hair with waves and curls"),
    sense("curly|afro", np="big curly {c} hair|voluminous {c} curls|a lot of curly {c} hair"),
    sense("short|buzz cut|side part", np="{c} hair kept short|shortish {c} hair"),
)

_HAIR_COLOR = (
    sense("black", tint="black|jet-black|raven|raven-black|ebony|coal-black|inky|pitch-black|midnight-black|onyx|"
          "deep black|ink-black|very dark|jet black", adj="black-haired|raven-haired"),
    sense("dark brown", tint="dark brown|deep brown|chocolate|chocolate-brown|espresso|coffee-coloured|dark-brown|"
          "walnut|mocha|cocoa-brown|brunette|dark chestnut|darkish brown", adj="brunette|dark-brown-haired"),
    sense("light brown", tint="light brown|caramel|sandy-brown|mousy brown|mousy|hazelnut|honey-brown|tawny|"
          "light-brown|fawn|toffee|pale brown|mouse-brown", adj="light-brown-haired"),
    sense("blonde", tint="blonde|blond|golden|golden-blonde|honey-blonde|flaxen|sandy|straw-coloured|wheat-coloured|"
          "yellow|ash-blonde|fair|sunny|sun-bleached|platinum blonde|gold",
          adj="blonde|blond|fair-haired|golden-haired|blonde-haired"),
    sense("red", tint="red|ginger|auburn|copper|coppery|rusty|fiery red|flame-red|carrot-coloured|russet|orange|"
          "titian|flaming red|fox-red|rust-coloured|strawberry red|bright red",
          adj="redheaded|red-haired|ginger|ginger-haired|flame-haired|auburn-haired"),
    sense("gray", tint="gray|grey|silver|silvery|salt-and-pepper|steel-gray|iron-grey|ash-gray|graying|greying|"
          "pewter|silver-grey|dark gray|grizzled", adj="gray-haired|grey-haired|silver-haired|grizzled|graying"),
    sense("white", tint="white|snow-white|snowy|cotton-white|bone-white|milk-white|pure white|pearl-white|"
          "chalk-white|ivory|bright white|snowy white|frosty white", adj="white-haired|snowy-haired"),
    sense("blue", tint="blue|azure|cobalt|electric blue|sapphire|bright blue|sky-blue|turquoise|neon blue|aqua|"
          "teal-blue|cyan|ocean-blue|royal blue|dyed blue", adj="blue-haired"),
    sense("pink", tint="pink|rose-coloured|bubblegum-pink|hot-pink|magenta|fuchsia|pastel pink|neon pink|"
          "cotton-candy|flamingo-pink|rosy|baby pink|dyed pink", adj="pink-haired"),
    sense("purple", tint="purple|violet|lavender|lilac|plum-coloured|mauve|amethyst|bright purple|grape-coloured|"
          "dark violet|deep purple|dyed purple", adj="purple-haired|violet-haired"),
    sense("green", tint="green|emerald|lime-green|neon green|mint-green|forest-green|jade|moss-green|grass-green|"
          "bright green|lime|seaweed-green|dyed green", adj="green-haired"),
    sense("dark brown|light brown", tint="brown|chestnut|nut-brown|brownish", adj="brown-haired|chestnut-haired"),
    sense("black|dark brown", tint="dark", adj="dark-haired"),
    sense("gray|white", tint="silver-white|grayish white", adj="hoary"),
)

_FACIAL_HAIR = (
    sense("none", adj="clean-shaven|smooth-faced|smooth-cheeked|clean shaven|freshly shaved|smooth-shaven|"
          "close-shaven",
          np="no facial hair|a clean-shaven face|a smooth chin|no beard or moustache|a smooth shaven face|"
          "a freshly shaved face|a hairless chin|smooth cheeks",
          state="without facial hair|without a beard|without any facial hair|clean-shaven|having just shaved|"
          "with no beard at all|without a beard or moustache"),
    sense("stubble", adj="stubbly|unshaven|stubbled|scruffy-faced|scruffy",
          np="stubble|a five o'clock shadow|a bit of stubble|a stubbly chin|light stubble|"
          "a few days of growth|designer stubble|a three-day beard|an unshaven face|a shadow of a beard|"
          "scruff|a stubbly jaw|a 5 o'clock shadow", state="in need of a shave|unshaven|not shaved for days"),
    sense("moustache", adj="moustachioed|mustachioed|mustached|moustached",
          np="a {c} moustache|a {c} mustache|a bushy {c} moustache|a {c} handlebar moustache|a thick {c} mustache|"
          "a big {c} moustache|a {c} tache|a neat {c} moustache|{c} hair above the lip|"
          "{c} whiskers on the upper lip|a walrus {c} moustache"),
    sense("goatee", adj="goateed",
          np="a {c} goatee|a {c} goatee beard|a small {c} goatee|a {c} chin beard|a trimmed {c} goatee|"
          "a {c} van dyke|a pointed {c} goatee|a {c} tuft on the chin|a little {c} beard on the chin|"
          "a {c} goat beard|a {c} soul patch and goatee|a {c} chin tuft"),
    sense("short beard", adj="short-bearded|lightly bearded",
          np="a short {c} beard|a trimmed {c} beard|a neat {c} beard|a close-cropped {c} beard|"
          "a neatly trimmed {c} beard|a tidy {c} beard|a groomed {c} beard|a small {c} beard|a {c} beard kept short|"
          "a well-kept {c} beard|a close {c} beard|a light {c} beard"),
    sense("full beard", adj="heavily bearded|full-bearded|thickly bearded",
          np="a full {c} beard|a long {c} beard|a thick {c} beard|a bushy {c} beard|a big {c} beard|"
          "a huge {c} beard|a massive {c} beard|a long bushy {c} beard|a wizard {c} beard|a hefty {c} beard|"
          "a viking {c} beard|a heavy {c} beard|a dense {c} beard|a great {c} beard"),
    sense("short beard|full beard|goatee", adj="bearded", np="a {c} beard|{c} beard", state="sporting a beard"),
    sense("moustache|goatee|short beard|full beard|stubble", adj="whiskered",
          np="{c} facial hair|some {c} facial hair|{c} whiskers"),
    sense("none|stubble|moustache", adj="beardless", np="no beard"),
)

#: The senses of what an avatar is born with, or grows.
BODY: dict[str, tuple[Sense, ...]] = {
    "age": _AGE, "skin_tone": _SKIN, "face_shape": _FACE, "eye_color": _EYE_COLOR, "eye_shape": _EYE_SHAPE,
    "nose": _NOSE, "lips": _LIPS, "expression": _EXPRESSION, "hair_style": _HAIR, "hair_color": _HAIR_COLOR,
    "facial_hair": _FACIAL_HAIR,
}
