"""The words for what avatars put on: glasses, hats, earrings, headphones, make-up, clothes (see `lexicon`)."""

from __future__ import annotations

from rodin_model.avatars.lexicon import Sense, sense

_GLASSES = (
    sense("none", np="no glasses|no eyewear|no spectacles|nothing over {p} eyes|bare eyes",
          state="without glasses|not wearing glasses|without spectacles|without eyewear|glasses-free|"
          "without any glasses", adj="glasses-free"),
    sense("glasses", adj="bespectacled|spectacled|glasses-wearing|four-eyed|spectacle-wearing",
          np="glasses|spectacles|specs|eyeglasses|reading glasses|a pair of glasses|thick glasses|round glasses|"
          "big glasses|nerdy glasses|horn-rimmed glasses|thin-framed glasses|specs on {p} nose|large specs|"
          "huge glasses",
          wear="glasses|spectacles|eyeglasses|specs|reading glasses|a pair of glasses|prescription glasses|"
          "clear glasses|nerd glasses|a pair of specs|oversized glasses|small spectacles|wire-rimmed glasses|"
          "an eyeglass frame"),
    sense("sunglasses", np="sunglasses|dark glasses|shades|black shades|dark shades|cool sunglasses|tinted glasses|"
          "black sunglasses|eyes hidden behind dark glasses|sunnies",
          wear="sunglasses|dark glasses|shades|sunnies|a pair of sunglasses|cool shades|ray-bans|tinted glasses|"
          "black glasses|mirrored sunglasses|aviator sunglasses", adj="sunglasses-wearing"),
)

_HAT = (
    sense("none", adj="bareheaded|hatless|bare-headed",
          np="no hat|nothing on {p} head|no headwear|no headgear|no hat or cap|an uncovered head",
          state="without a hat|not wearing a hat|without any headwear|bareheaded|without a cap|"
          "with {p} head uncovered|hatless"),
    sense("cap", adj="cap-wearing",
          np="a cap|a baseball cap|a ball cap|a cap on {p} head|a peaked cap|a trucker cap|a snapback",
          wear="a cap|a baseball cap|a ball cap|a snapback|a peaked cap|a trucker hat|a sports cap|"
          "a cap with a visor|a baseball hat|a golf cap"),
    sense("beanie", adj="beanie-wearing",
          np="a beanie|a knit cap|a woolen hat|a beanie on {p} head|a knitted hat|a bobble hat",
          wear="a beanie|a knit cap|a knitted hat|a wool hat|a woollen cap|a woolly hat|a ski hat|a winter hat|"
          "a beanie hat|a tuque|a bobble hat|a warm knit hat|a stocking cap"),
    sense("fedora", adj="fedora-wearing", np="a fedora|a brimmed hat|a fedora on {p} head|a trilby",
          wear="a fedora|a fedora hat|a brimmed hat|a trilby|a gangster hat|a felt hat|a hat with a brim|"
          "a detective hat|a panama hat|a wide-brimmed hat|a gentleman's hat|an indiana jones hat"),
    sense("cap|beanie|fedora", adj="hat-wearing", np="a hat|a hat on {p} head|headwear",
          wear="a hat|headgear|something on {p} head"),
)

_EARRINGS = (
    sense("none", np="no earrings|bare ears|no ear jewellery|no jewellery|unpierced ears",
          state="without earrings|not wearing earrings|without ear rings|without any jewelry"),
    sense("studs", np="stud earrings|studs|ear studs|small earrings|pearl earrings|diamond studs|tiny stud earrings|"
          "a stud in each ear|pearl studs|studded ears",
          wear="stud earrings|studs|ear studs|small earrings|pearl earrings|little stud earrings|diamond earrings|"
          "discreet earrings|tiny earrings"),
    sense("hoops", adj="hoop-earringed",
          np="hoop earrings|hoops|big hoop earrings|large hoops|golden hoop earrings|ring earrings|gold hoops|"
          "hoops in {p} ears|big round earrings",
          wear="hoop earrings|hoops|big hoop earrings|large hoops|creoles|big earrings|dangling hoops|gold hoops|"
          "silver hoop earrings"),
    sense("studs|hoops", np="earrings|pierced ears|ear jewellery",
          wear="earrings|a pair of earrings|ear rings|ear jewelry"),
)

_HEADPHONES = (
    sense("none", np="no headphones|no headset|no earphones",
          state="without headphones|not wearing headphones|without a headset"),
    sense("headphones", adj="headphone-wearing",
          np="headphones|a headset|big headphones|headphones over {p} ears|headphones on|cans on {p} ears|ear phones",
          wear="headphones|a headset|big headphones|a pair of headphones|over-ear headphones|gaming headphones|"
          "dj headphones|wireless headphones|earphones|studio headphones|cans",
          state="listening to music on headphones|listening through headphones|with headphones on"),
)

_MAKEUP = (
    sense("none", adj="bare-faced|makeup-free|natural-looking",
          np="no makeup|no make-up|a bare face|no cosmetics|a natural face",
          state="without makeup|without make-up|not wearing makeup|wearing no make up|without lipstick|"
          "in natural looks"),
    sense("lipstick", np="lipstick|red lipstick|painted lips|lipstick on|subtle makeup|red painted lips|"
          "light make-up|coloured lips",
          wear="lipstick|red lipstick|light makeup|subtle make-up|just lipstick|a touch of lipstick|lip colour|"
          "a bit of makeup|rouge lipstick", adj="lipsticked"),
    sense("bold", adj="heavily made-up|glamorous|dolled-up|glammed-up",
          np="bold makeup|heavy make-up|dramatic makeup|bold make-up|eye shadow and lipstick|smoky eye makeup|"
          "a lot of makeup|strong make-up|colourful eyeshadow|glam makeup",
          wear="bold makeup|heavy makeup|dramatic make-up|lots of makeup|eye shadow|eyeshadow and lipstick|"
          "thick make-up|glamorous makeup|striking makeup|full makeup|stage makeup|mascara and eye shadow"),
    sense("lipstick|bold", adj="made-up", np="makeup|make-up", wear="makeup|make-up|cosmetics"),
)

_CLOTHING = (
    sense("t-shirt", wear="a {c} t-shirt|a {c} tee|a {c} tshirt|a {c} tee shirt|a plain {c} t-shirt|a {c} T-shirt|"
          "a simple {c} tee|a {c} crew-neck t-shirt|a casual {c} tee|a {c} jersey top"),
    sense("shirt", wear="a {c} shirt|a {c} button-up shirt|a {c} dress shirt|a {c} collared shirt|a {c} button-down|"
          "a {c} blouse|a buttoned {c} shirt|a {c} shirt with a collar|a crisp {c} shirt|a {c} oxford shirt|"
          "a {c} polo shirt"),
    sense("suit and tie", adj="suited|smartly dressed|formally dressed|besuited|suit-wearing",
          wear="a {c} suit and tie|a {c} suit|a {c} business suit|a {c} suit with a tie|a formal {c} suit|"
          "a {c} jacket and tie|a {c} tuxedo|a tie and a {c} suit|a {c} three-piece suit|an elegant {c} suit|"
          "a {c} blazer and tie|formal {c} clothes|{c} office attire"),
    sense("hoodie", adj="hooded|hoodie-wearing",
          wear="a {c} hoodie|a {c} hooded sweatshirt|a {c} hoody|a {c} hooded sweater|a {c} hooded top|"
          "a {c} hooded jumper|a casual {c} hoodie|a baggy {c} hoodie|a {c} zip hoodie"),
    sense("leather jacket", adj="leather-clad|leather-jacketed",
          wear="a {c} leather jacket|a {c} biker jacket|a {c} leather coat|a {c} motorcycle jacket|{c} leather|"
          "a {c} rocker jacket|a {c} jacket of leather|a cool {c} leather jacket|{c} biker leathers|"
          "a {c} leather biker jacket|a {c} bomber jacket"),
    sense("sweater", wear="a {c} sweater|a {c} jumper|a {c} pullover|a {c} knit sweater|a knitted {c} jumper|"
          "a woolly {c} sweater|a cosy {c} pullover|a {c} cardigan|a {c} turtleneck|a {c} wool sweater|{c} knitwear|"
          "a {c} knitted top|a warm {c} sweater|a {c} woollen jumper"),
    sense("dress", wear="a {c} dress|a {c} gown|a {c} evening dress|a {c} sundress|a {c} summer dress|"
          "an elegant {c} dress|a {c} cocktail dress|a {c} evening gown|a {c} party dress|a pretty {c} dress|"
          "a {c} frock"),
    sense("hoodie|sweater", wear="a {c} sweatshirt"),
    sense("leather jacket|suit and tie", wear="a {c} jacket"),
)

_CLOTHING_COLOR = (
    sense("black", tint="black|jet-black|pitch-black|ebony|coal-black|midnight-black|inky black|all-black"),
    sense("white", tint="white|snow-white|off-white|pure white|cream-white|ivory|bright white|chalk-white|snowy"),
    sense("gray", tint="gray|grey|charcoal|light gray|dark grey|silver-grey|slate-gray|ash-grey|heather gray|silver"),
    sense("navy", tint="navy|navy blue|dark blue|navy-blue|midnight blue|deep blue|marine blue|indigo"),
    sense("blue", tint="blue|sky-blue|bright blue|royal blue|azure|cobalt|light blue|medium blue|sapphire-blue|"
          "denim-blue"),
    sense("red", tint="red|crimson|scarlet|ruby|bright red|cherry-red|fire-red|blood-red|burgundy|dark red|"
          "tomato-red|ruby-red"),
    sense("green", tint="green|emerald|forest-green|olive-green|bright green|moss-green|dark green|lime-green|"
          "mint-green|bottle-green|grass-green"),
    sense("yellow", tint="yellow|golden|mustard-yellow|lemon|lemon-yellow|bright yellow|sunny yellow|canary-yellow|"
          "mustard|gold-coloured"),
    sense("orange", tint="orange|tangerine|bright orange|pumpkin-orange|burnt orange|apricot|amber|rust-orange|"
          "coral-orange|carrot-orange"),
    sense("purple", tint="purple|violet|lilac|lavender|plum-coloured|mauve|dark purple|bright purple|aubergine|"
          "grape-purple"),
    sense("pink", tint="pink|rose-coloured|hot-pink|magenta|fuchsia|pale pink|bubblegum-pink|bright pink|"
          "salmon-pink|blush-pink|pastel pink"),
    sense("brown", tint="brown|chocolate-brown|tan|chestnut|coffee-coloured|dark brown|beige-brown|camel-coloured|"
          "cognac-brown|mocha|khaki-brown|cocoa"),
)

#: The senses of what an avatar puts on.
WARDROBE: dict[str, tuple[Sense, ...]] = {
    "glasses": _GLASSES, "hat": _HAT, "earrings": _EARRINGS, "headphones": _HEADPHONES, "makeup": _MAKEUP,
    "clothing": _CLOTHING, "clothing_color": _CLOTHING_COLOR,
}
