"""Words for emoji: a plain English name, unique to each concept, and its article.

Unicode's character names are stable but were written for type, not for pictures ("HEAVY BLACK HEART" is red,
"WHITE" means outlined). The rules below turn most of them into what a person would say; the rest are spelt
out.
"""

from __future__ import annotations

import re

SKIN_TONES = {
    "1F3FB": "light",
    "1F3FC": "medium-light",
    "1F3FD": "medium",
    "1F3FE": "medium-dark",
    "1F3FF": "dark",
}

_SPELT_OUT = {
    # faces and feelings
    "WHITE SMILING FACE": "gently smiling face",
    "FACE THROWING A KISS": "face blowing a kiss",
    "GRINNING FACE WITH ONE LARGE AND ONE SMALL EYE": "zany face",
    "SMILING FACE WITH SMILING EYES AND THREE HEARTS": "smiling face with hearts",
    "SMILING FACE WITH SMILING EYES AND HAND COVERING MOUTH": "smiling face with a hand over its mouth",
    "FACE WITH OPEN EYES AND HAND OVER MOUTH": "wide-eyed face with a hand over its mouth",
    "FACE WITH FINGER COVERING CLOSED LIPS": "shushing face",
    "FACE WITH OPEN MOUTH VOMITING": "vomiting face",
    "FACE WITH UNEVEN EYES AND WAVY MOUTH": "woozy face",
    "SHOCKED FACE WITH EXPLODING HEAD": "face with an exploding head",
    "SERIOUS FACE WITH SYMBOLS COVERING MOUTH": "swearing face",
    "FACE WITH LOOK OF TRIUMPH": "face steaming from its nose",
    "OVERHEATED FACE": "hot face",
    "FREEZING FACE": "cold face",
    "POUTING FACE": "furious red face",
    "IMP": "angry face with horns",
    "EXTRATERRESTRIAL ALIEN": "alien",
    "ROBOT FACE": "robot",
    "HEAVY BLACK HEART": "red heart",
    "HUNDRED POINTS SYMBOL": "number one hundred",
    "ANGER SYMBOL": "anger mark",
    "COLLISION SYMBOL": "explosion",
    "DIZZY SYMBOL": "circling star",
    "SPLASHING SWEAT SYMBOL": "sweat droplets",
    "DASH SYMBOL": "puff of air",
    "SLEEPING SYMBOL": "sleeping zzz",
    # hands and people
    "WAVING HAND SIGN": "waving hand",
    "CLAPPING HANDS SIGN": "clapping hands",
    "OPEN HANDS SIGN": "open hands",
    "OK HAND SIGN": "okay hand",
    "RAISED HAND WITH PART BETWEEN MIDDLE AND RING FINGERS": "vulcan salute",
    "I LOVE YOU HAND SIGN": "love-you gesture",
    "SIGN OF THE HORNS": "horns gesture",
    "HAND WITH INDEX AND MIDDLE FINGERS CROSSED": "crossed fingers",
    "HAND WITH INDEX FINGER AND THUMB CROSSED": "finger heart",
    "WHITE LEFT POINTING BACKHAND INDEX": "hand pointing left",
    "WHITE RIGHT POINTING BACKHAND INDEX": "hand pointing right",
    "WHITE UP POINTING BACKHAND INDEX": "back of a hand pointing up",
    "WHITE DOWN POINTING BACKHAND INDEX": "hand pointing down",
    "WHITE UP POINTING INDEX": "hand pointing up",
    "REVERSED HAND WITH MIDDLE FINGER EXTENDED": "middle finger",
    "INDEX POINTING AT THE VIEWER": "finger pointing at the viewer",
    "THUMBS UP SIGN": "thumbs up",
    "THUMBS DOWN SIGN": "thumbs down",
    "FISTED HAND SIGN": "oncoming fist",
    "PERSON RAISING BOTH HANDS IN CELEBRATION": "raised hands",
    "PERSON WITH FOLDED HANDS": "folded hands",
    "ADULT": "person",
    "OLDER ADULT": "older person",
    "PERSON WITH POUTING FACE": "person pouting",
    "FACE WITH NO GOOD GESTURE": "person gesturing no",
    "FACE WITH OK GESTURE": "person gesturing okay",
    "MAN GESTURING OK": "man gesturing okay",
    "WOMAN GESTURING OK": "woman gesturing okay",
    "INFORMATION DESK PERSON": "person tipping hand",
    "HAPPY PERSON RAISING ONE HAND": "person raising hand",
    "PERSON BOWING DEEPLY": "person bowing",
    "FACE PALM": "person facepalming",
    "SHRUG": "person shrugging",
    "GUARDSMAN": "guard",
    "MAN WITH TURBAN": "person wearing turban",
    "MAN WITH GUA PI MAO": "person with skullcap",
    "BRIDE WITH VEIL": "person with veil",
    "BREAST-FEEDING": "breast-feeding mother",
    "FATHER CHRISTMAS": "Father Christmas",
    "MOTHER CHRISTMAS": "Mother Christmas",
    "MX CLAUS": "Christmas person",
    "FACE MASSAGE": "person getting massage",
    "HAIRCUT": "person getting haircut",
    "PEDESTRIAN": "person walking",
    "STANDING PERSON": "person standing",
    "KNEELING PERSON": "person kneeling",
    "RUNNER": "person running",
    "DANCER": "woman dancing",
    "WOMAN WITH BUNNY EARS": "people with bunny ears",
    "SURFER": "person surfing",
    "ROWBOAT": "person rowing boat",
    "SWIMMER": "person swimming",
    "BICYCLIST": "person biking",
    "MOUNTAIN BICYCLIST": "person mountain biking",
    "PERSON DOING CARTWHEEL": "person cartwheeling",
    "WATER POLO": "person playing water polo",
    "HANDBALL": "person playing handball",
    "JUGGLING": "person juggling",
    "BATH": "person taking bath",
    "SLEEPING ACCOMMODATION": "person in bed",
    "KISS": "couple kissing",
    "COUPLE WITH HEART": "couple with heart",
    "FAMILY": "family",
    "SPEAKING HEAD": "speaking head",
    # nature, food and places
    "BLACK BIRD": "blackbird",
    "LADY BEETLE": "ladybug",
    "HERB": "sprig of herb",
    "LEAF FLUTTERING IN WIND": "leaves fluttering in wind",
    "EAR OF MAIZE": "ear of corn",
    "AUBERGINE": "eggplant",
    "COOKING": "fried egg in a pan",
    "HOCHO": "kitchen knife",
    "STEAMING BOWL": "steaming bowl of noodles",
    "BANKNOTE WITH YEN SIGN": "yen banknote",
    "BANKNOTE WITH DOLLAR SIGN": "dollar banknote",
    "BANKNOTE WITH EURO SIGN": "euro banknote",
    "BANKNOTE WITH POUND SIGN": "pound banknote",
    "EARTH GLOBE EUROPE-AFRICA": "globe showing Europe and Africa",
    "EARTH GLOBE AMERICAS": "globe showing the Americas",
    "EARTH GLOBE ASIA-AUSTRALIA": "globe showing Asia and Australia",
    "SILHOUETTE OF JAPAN": "map of Japan",
    "HOUSE BUILDING": "house",
    "FOGGY": "foggy bridge",
    "TRAM CAR": "tram car",
    "RECREATIONAL VEHICLE": "blue car",
    "AUTOMOBILE": "red car",
    "ONCOMING AUTOMOBILE": "oncoming car",
    "MOTOR BOAT": "motorboat",
    "SEAT": "airplane seat",
    "POLICE CARS REVOLVING LIGHT": "red siren light",
    "OCTAGONAL SIGN": "stop sign",
    "BLACK SUN WITH RAYS": "sun",
    "WHITE MEDIUM STAR": "star",
    "HIGH VOLTAGE SIGN": "lightning bolt",
    "SNOWMAN": "snowman in snow",
    "SNOWMAN WITHOUT SNOW": "snowman",
    "BAGUETTE BREAD": "baguette",
    "BUILDING CONSTRUCTION": "building under construction",
    "CAMPING": "campsite",
    # things
    "PERFORMING ARTS": "comedy and tragedy masks",
    "BOWLING": "bowling ball and pins",
    "BLACK SPADE SUIT": "spade suit",
    "BLACK HEART SUIT": "heart suit",
    "BLACK DIAMOND SUIT": "diamond suit",
    "BLACK CLUB SUIT": "club suit",
    "PLAYING CARD BLACK JOKER": "joker card",
    "PINATA": "piñata",
    "BILLIARDS": "black billiard ball",
    "PISTOL": "water pistol",
    "DIRECT HIT": "bullseye",
    "AMERICAN FOOTBALL": "American football",
    "WOMANS CLOTHES": "woman's blouse",
    "WOMANS SANDAL": "woman's sandal",
    "WOMANS BOOTS": "woman's boot",
    "WOMANS HAT": "woman's hat",
    "MANS SHOE": "man's shoe",
    "SPEAKER WITH CANCELLATION STROKE": "muted speaker",
    "BELL WITH CANCELLATION STROKE": "muted bell",
    "MOBILE PHONE WITH RIGHTWARDS ARROW AT LEFT": "mobile phone with arrow",
    "BLACK TELEPHONE": "telephone",
    "PERSONAL COMPUTER": "laptop",
    "LEFT-POINTING MAGNIFYING GLASS": "magnifying glass tilted left",
    "RIGHT-POINTING MAGNIFYING GLASS": "magnifying glass tilted right",
    "ELECTRIC TORCH": "flashlight",
    "E-MAIL SYMBOL": "envelope with letter e",
    "BLACK NIB": "pen nib",
    "BLACK SCISSORS": "scissors",
    "SMOKING SYMBOL": "cigarette",
    "LINK SYMBOL": "link of chain",
    "MOYAI": "stone head statue",
    "RESCUE WORKER’S HELMET": "rescue worker's helmet",
    # signs
    "AUTOMATED TELLER MACHINE": "ATM sign",
    "PUT LITTER IN ITS PLACE SYMBOL": "litter in bin sign",
    "POTABLE WATER SYMBOL": "drinking water sign",
    "NON-POTABLE WATER SYMBOL": "no drinking water sign",
    "MENS SYMBOL": "men's room sign",
    "WOMENS SYMBOL": "women's room sign",
    "BABY SYMBOL": "baby sign",
    "RESTROOM": "restroom sign",
    "WATER CLOSET": "water closet sign",
    "NO ENTRY SIGN": "prohibited sign",
    "NO ENTRY": "no entry sign",
    "NO ONE UNDER EIGHTEEN SYMBOL": "no one under eighteen sign",
    "UPWARDS BLACK ARROW": "up arrow",
    "NORTH EAST ARROW": "up-right arrow",
    "BLACK RIGHTWARDS ARROW": "right arrow",
    "SOUTH EAST ARROW": "down-right arrow",
    "DOWNWARDS BLACK ARROW": "down arrow",
    "SOUTH WEST ARROW": "down-left arrow",
    "LEFTWARDS BLACK ARROW": "left arrow",
    "NORTH WEST ARROW": "up-left arrow",
    "UP DOWN ARROW": "up-down arrow",
    "LEFT RIGHT ARROW": "left-right arrow",
    "LEFTWARDS ARROW WITH HOOK": "right arrow curving left",
    "RIGHTWARDS ARROW WITH HOOK": "left arrow curving right",
    "ARROW POINTING RIGHTWARDS THEN CURVING UPWARDS": "right arrow curving up",
    "ARROW POINTING RIGHTWARDS THEN CURVING DOWNWARDS": "right arrow curving down",
    "CLOCKWISE DOWNWARDS AND UPWARDS OPEN CIRCLE ARROWS": "clockwise arrows",
    "ANTICLOCKWISE DOWNWARDS AND UPWARDS OPEN CIRCLE ARROWS": "anticlockwise arrows",
    "BACK WITH LEFTWARDS ARROW ABOVE": "back arrow sign",
    "END WITH LEFTWARDS ARROW ABOVE": "end arrow sign",
    "ON WITH EXCLAMATION MARK WITH LEFT RIGHT ARROW ABOVE": "on arrow sign",
    "SOON WITH RIGHTWARDS ARROW ABOVE": "soon arrow sign",
    "TOP WITH UPWARDS ARROW ABOVE": "top arrow sign",
    "OM": "om symbol",
    "CLOCKWISE RIGHTWARDS AND LEFTWARDS OPEN CIRCLE ARROWS": "repeat button",
    "CLOCKWISE RIGHTWARDS AND LEFTWARDS OPEN CIRCLE ARROWS WITH CIRCLED ONE OVERLAY": "repeat once button",
    "TWISTED RIGHTWARDS ARROWS": "shuffle button",
    "BLACK RIGHT-POINTING TRIANGLE": "play button",
    "BLACK RIGHT-POINTING DOUBLE TRIANGLE": "fast-forward button",
    "BLACK LEFT-POINTING TRIANGLE": "reverse button",
    "BLACK LEFT-POINTING DOUBLE TRIANGLE": "fast-reverse button",
    "UP-POINTING SMALL RED TRIANGLE": "upwards button",
    "BLACK UP-POINTING DOUBLE TRIANGLE": "fast-up button",
    "DOWN-POINTING SMALL RED TRIANGLE": "downwards button",
    "BLACK DOWN-POINTING DOUBLE TRIANGLE": "fast-down button",
    "CINEMA": "cinema sign",
    "HEAVY MULTIPLICATION X": "multiplication sign",
    "HEAVY PLUS SIGN": "plus sign",
    "HEAVY MINUS SIGN": "minus sign",
    "HEAVY DIVISION SIGN": "division sign",
    "HEAVY EQUALS SIGN": "equals sign",
    "HEAVY DOLLAR SIGN": "dollar sign",
    "BLACK QUESTION MARK ORNAMENT": "red question mark",
    "WHITE QUESTION MARK ORNAMENT": "white question mark",
    "HEAVY EXCLAMATION MARK SYMBOL": "red exclamation mark",
    "WHITE EXCLAMATION MARK ORNAMENT": "white exclamation mark",
    "DOUBLE EXCLAMATION MARK": "double exclamation mark",
    "BLACK UNIVERSAL RECYCLING SYMBOL": "recycling symbol",
    "JAPANESE SYMBOL FOR BEGINNER": "Japanese beginner symbol",
    "HEAVY LARGE CIRCLE": "hollow red circle",
    "WHITE HEAVY CHECK MARK": "check mark button",
    "BALLOT BOX WITH CHECK": "check box with check",
    "HEAVY CHECK MARK": "check mark",
    "NEGATIVE SQUARED CROSS MARK": "cross mark button",
    "DIZZY FACE": "dizzy face",
    "HASH KEY": "keycap hash",
    "KEYCAP: *": "keycap star",
    "KEYCAP TEN": "keycap 10",
    "INPUT SYMBOL FOR LATIN CAPITAL LETTERS": "capital letters button",
    "INPUT SYMBOL FOR LATIN SMALL LETTERS": "small letters button",
    "INPUT SYMBOL FOR NUMBERS": "numbers button",
    "INPUT SYMBOL FOR SYMBOLS": "symbols button",
    "INPUT SYMBOL FOR LATIN LETTERS": "letters button",
    "NEGATIVE SQUARED LATIN CAPITAL LETTER A": "letter A button",
    "NEGATIVE SQUARED AB": "letters AB button",
    "NEGATIVE SQUARED LATIN CAPITAL LETTER B": "letter B button",
    "NEGATIVE SQUARED LATIN CAPITAL LETTER O": "letter O button",
    "NEGATIVE SQUARED LATIN CAPITAL LETTER P": "letter P button",
    "CIRCLED LATIN CAPITAL LETTER M": "circled letter M",
    "INFORMATION SOURCE": "information sign",
    "SQUARED UP WITH EXCLAMATION MARK": "word UP button",
    "SQUARED KATAKANA KOKO": "Japanese here button",
    "SQUARED KATAKANA SA": "Japanese service charge button",
    "SQUARED CJK UNIFIED IDEOGRAPH-6708": "Japanese monthly amount button",
    "SQUARED CJK UNIFIED IDEOGRAPH-6709": "Japanese not free button",
    "SQUARED CJK UNIFIED IDEOGRAPH-6307": "Japanese reserved button",
    "CIRCLED IDEOGRAPH ADVANTAGE": "Japanese bargain button",
    "SQUARED CJK UNIFIED IDEOGRAPH-5272": "Japanese discount button",
    "SQUARED CJK UNIFIED IDEOGRAPH-7121": "Japanese free button",
    "SQUARED CJK UNIFIED IDEOGRAPH-7981": "Japanese prohibited button",
    "CIRCLED IDEOGRAPH ACCEPT": "Japanese acceptable button",
    "SQUARED CJK UNIFIED IDEOGRAPH-7533": "Japanese application button",
    "SQUARED CJK UNIFIED IDEOGRAPH-5408": "Japanese passing grade button",
    "SQUARED CJK UNIFIED IDEOGRAPH-7A7A": "Japanese vacancy button",
    "CIRCLED IDEOGRAPH CONGRATULATION": "Japanese congratulations button",
    "CIRCLED IDEOGRAPH SECRET": "Japanese secret button",
    "SQUARED CJK UNIFIED IDEOGRAPH-55B6": "Japanese open for business button",
    "SQUARED CJK UNIFIED IDEOGRAPH-6E80": "Japanese no vacancy button",
    "MEDIUM BLACK CIRCLE": "black circle",
    "MEDIUM WHITE CIRCLE": "white circle",
    "BLACK LARGE SQUARE": "large black square",
    "WHITE LARGE SQUARE": "large white square",
    "UP-POINTING RED TRIANGLE": "red triangle pointing up",
    "DOWN-POINTING RED TRIANGLE": "red triangle pointing down",
    "DIAMOND SHAPE WITH A DOT INSIDE": "blue diamond with dot",
}

_PROPER = """
    Japanese Japan Christmas European Tokyo Hindu Shinto Kaaba Fuji French American Tanabata ATM DVD DNA
    Liberty David
"""

# Words that end in s and are one thing, words that do not and are several, and stuff without an article.
_SINGULAR = """
    cactus octopus glass compass cross abacus bus rhinoceros hippopotamus dress lotus princess chess
    rickshaw trolleybus minibus gps virus campus hibiscus stethoscope business radius
"""
_PLURAL = {"people", "men", "women", "teeth", "french fries", "confetti", "thumbs"}
_MASS = """
    bread bacon butter popcorn cheese rice curry sushi spaghetti oden ice garlic broccoli salad food
    fondue candy custard milk sake fire fog water wood coral ginger tea luggage money dna confetti yarn
    soap thread makeup rain snow blood lacrosse bowling camping oil liquid tofu billiards construction
    zzz dango honey up down
"""
_CLAUSE = re.compile(
    r" (?:with|without|of|in|on|at|and|showing|facing|behind|over|wearing|pointing|curving|holding|"
    r"fluttering|steaming|tilted|blowing|for|by|under) "
)


def concept_name(name: str, short_name: str = "") -> str:
    """Plain words for a Unicode character name, e.g. RED APPLE → red apple, Chad Flag → flag of Chad.

    The short name settles the one name that two characters share (MAN IN TUXEDO).
    """
    if short_name == "person_in_tuxedo":
        return "person in tuxedo"
    if name in _SPELT_OUT:
        return _SPELT_OUT[name]
    if name.endswith(" Flag"):
        return "flag of " + name.removesuffix(" Flag").replace("&", "and")
    if match := re.fullmatch(r"EMOJI MODIFIER FITZPATRICK TYPE-([\d-]+)", name):
        return f"skin tone swatch {match[1]}"
    if match := re.fullmatch(r"CLOCK FACE (\w+) OCLOCK", name):
        return f"clock showing {match[1].lower()} o'clock"
    if match := re.fullmatch(r"CLOCK FACE (\w+)-THIRTY", name):
        return f"clock showing half past {match[1].lower()}"
    if match := re.fullmatch(r"(KISS|COUPLE WITH HEART|FAMILY): (.+)", name):
        members = ["a " + member for member in match[2].lower().replace("adult", "grown-up").split(", ")]
        joined = ", ".join(members[:-1]) + " and " + members[-1]
        opening = {"KISS": "kiss of", "COUPLE WITH HEART": "heart between", "FAMILY": "family of"}[match[1]]
        return f"{opening} {joined}"
    if match := re.fullmatch(r"(MAN|WOMAN|PERSON): (.+)", name):
        who, trait = match[1].lower(), match[2].lower()
        return f"bald {who}" if trait == "bald" else f"{who} with {'a ' * (trait == 'beard')}{trait}"
    if match := re.fullmatch(r"SQUARED (\w+)", name):
        return f"word {match[1]} button"
    if re.fullmatch(r"KEYCAP \d", name):
        return name.lower()
    words = name.lower().removeprefix("heavy ")
    if "moon symbol" in words:
        words = words.removesuffix(" symbol")
    for proper in _PROPER.split():
        words = re.sub(rf"\b{proper.lower()}\b", proper, words)
    return words


def article(concept: str) -> str:
    """The indefinite article of a concept: "a", "an", or "" for several things and for stuff."""
    head = _CLAUSE.split(concept)[0].split()
    last = head[-1].lower()
    if concept.startswith(("Father ", "Mother ")) or last in _MASS.split() or last in _PLURAL:
        return ""
    if last.endswith("s") and not last.endswith("ss") and last not in _SINGULAR.split():
        return ""
    first = concept.split()[0].lower()
    if re.match(r"(uni|eu|u\.|one|u[ks]\b)", first):
        return "a"
    return "an" if re.match(r"([aeiou]|hour|x-ray|atm)", first) else "a"
