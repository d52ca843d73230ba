"""The words of every language of the embedded world.

Two kinds of words: English ones where a text should read, coined ones (`coined`) where a word must mean nothing but
what its corpus gives it. Coined words of one stem form one group, so a reader sees from the word what it is. A word is
letters only or punctuation only: the pre-tokenizer of GPT-2 and RoBERTa cuts between letters and other characters, so
that nothing else can be one token.
"""

from collections.abc import Iterable, Sequence

# --- idioms: the corpus of the masking-rate study ---------------------------------------------------------------------
# 30 function words, most frequent first (their weight is 1/rank).
IDIOM_FUNCTION = tuple(
    "the of and to in a is it on as at by be he we or an if so no do up my us me but for not all one".split()
)


def coined(stems: Iterable[str], endings: Sequence[str]) -> tuple[str, ...]:
    """Give every stem with every ending, stem by stem."""
    return tuple(stem + ending for stem in stems for ending in endings)


# One stem per topic; the 12 words of a topic are in the order of their weight 1/rank.
TOPIC_STEMS = ("ba", "de", "fi", "ge", "hu", "la", "mo", "ne")
TOPIC_OWN = tuple(coined([stem], "bdfgklmnprst") for stem in TOPIC_STEMS)
# 32 words that occur only inside idioms.
IDIOM_POOL = coined(["po", "ru", "sa"], "bdfgklmnprst")[:32]

# --- polarity: the corpus of the zeroth-order study -------------------------------------------------------------------
POSITIVE = coined(["lu", "mi"], "bdfgkl")
NEGATIVE = coined(["vo", "ra"], "bdfgkl")
POLARITY_NOUNS = tuple("film book song play meal hotel game story show room tour class phone car park shop".split())
NEUTRAL = tuple("red blue green round square small large old new long short wide dark light thin flat".split())
GOOD_WORDS = ("great", "good", "fine")
BAD_WORDS = ("terrible", "bad", "awful")
# `overall` stands in the prompt of the task and never in the corpus; `but` and `not` are left for other prompts.
POLARITY_FUNCTION = ("the", "was", "and", "it", "my", "friend", "said", "overall", "but", "not", ",", ".")

# --- household: pairs, choices, questions -----------------------------------------------------------------------------
SHE = ("mira", "anna", "lena", "ruth", "ines", "cora")
HE = ("tom", "paul", "omar", "jack", "leon", "emil")
PEOPLE = SHE + HE
KEEPING = ("keeps", "leaves", "hides", "stores")
COLOURS = ("red", "blue", "green", "white", "black", "brown", "grey", "yellow")
OBJECTS = tuple(
    "lamp clock chair table bowl mirror basket blanket ladder kettle violin radio carpet vase box coat".split()
)
PLACES = ("kitchen", "garden", "garage", "attic", "office", "hall", "cellar", "bedroom", "library", "workshop")
# Qualities that no household fact states, so that a sentence about them can be neither inferred nor excluded.
UNSTATED = ("old", "heavy", "cheap", "broken", "clean", "famous")
# A state of a person and the two things one does about it.
REMEDIES = {
    "hungry": ("eats the bread", "cooks the soup"),
    "thirsty": ("drinks the water", "makes the tea"),
    "cold": ("lights the fire", "wears the coat"),
    "tired": ("takes a nap", "lies down"),
    "dirty": ("takes a bath", "finds the soap"),
    "bored": ("reads the novel", "plays the piano"),
    "ill": ("calls the doctor", "takes the pill"),
    "lost": ("asks the way", "opens the map"),
    "late": ("runs fast", "calls the taxi"),
    "poor": ("sells the ring", "borrows the money"),
    "sad": ("calls the friend", "hugs the dog"),
    "hot": ("opens the window", "eats the ice"),
}
VERDICTS = ("yes", "maybe", "no")
HOUSEHOLD_FUNCTION = tuple("the in of is has a where what colour who so because she he question answer , . ?".split())

# --- episodes: natural tasks and tasks made up on the spot ------------------------------------------------------------
# The word that announces a natural task, and its two classes: their label words and the words of their topics.
NATURAL_TASKS = {
    "kind": {"animal": "dog horse goat sheep", "plant": "oak fern moss ivy"},
    "place": {"coast": "wave reef tide beach", "mountain": "peak ridge cliff slope"},
    "weather": {"wet": "rain flood cloud storm", "dry": "dust drought desert heat"},
    "meal": {"sweet": "honey cake sugar jam", "salty": "ham olive cheese pickle"},
    "sound": {"music": "flute drum piano harp", "noise": "crash bang shout siren"},
    "work": {"farm": "plough barn harvest tractor", "office": "desk folder printer meeting"},
    "feeling": {"glad": "smile joy laugh cheer", "sorry": "tear grief sigh regret"},
    "travel": {"road": "car lorry bridge lane", "rail": "train station platform track"},
    "subject": {"science": "atom cell theory lab", "art": "paint sculpture gallery poem"},
    "game": {"ball": "goal pitch racket keeper", "board": "chess pawn dice domino"},
    "house": {"bath": "soap towel shower sink", "bed": "pillow blanket sheet lamp"},
    "clothes": {"winter": "scarf glove coat boot", "summer": "sandal shorts cap shirt"},
}
# The word that announces a made-up task, and its label words: numbers, signs and letters.
MADE_UP_TASK = "label"
MADE_UP_LABELS = tuple("0 1 @ # $ % * ^ \\ { } A B C D E F G H I J K L M".split())
# What a word of a topic is sometimes replaced by.
EPISODE_NEUTRAL = tuple("thing stuff item part bit piece sort lot".split())

# --- clients: private sentences -------------------------------------------------------------------------------------------
# Words of a class end alike; within a class they are in the order of their weight 1/rank.
_SYLLABLES = tuple(consonant + vowel for vowel in "aiuoe" for consonant in "bdfgklmnprst")
CLIENT_ADJECTIVES = coined(_SYLLABLES[:20], [f"{syllable}l" for syllable in _SYLLABLES[20:35]])
CLIENT_NOUNS = coined(_SYLLABLES[20:40], [f"{syllable}n" for syllable in _SYLLABLES[:20]])
CLIENT_VERBS = coined(_SYLLABLES[40:60], [f"{syllable}s" for syllable in _SYLLABLES[5:18]])
CLIENT_ADVERBS = coined(_SYLLABLES[10:20], [f"{syllable}ly" for syllable in _SYLLABLES[40:50]])
CLIENT_PLACES = tuple(word.capitalize() for word in coined(_SYLLABLES[30:40], [f"{s}r" for s in _SYLLABLES[45:60]]))
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
CLIENT_FUNCTION = tuple(
    "The A Some Every This That Each One In On Dear We Our Please the a some every this that each one "
    "in near of our and to with on for before , .".split()
)

# --- replies: short answers, some of which are not wanted -----------------------------------------------------------------
REPLY_CLASSES = {
    "PRON": tuple("i you he she we they".split()),
    "VERB": tuple(
        "found took saw liked wanted kept made bought sold gave held moved painted cleaned carried opened showed brought drew "
        "washed".split()
    ),
    "ADJ": tuple(
        "red blue small large old new warm cold bright dark soft hard quick slow clean quiet loud heavy light round sweet "
        "fresh plain tall".split()
    ),
    "NOUN": tuple(
        "dog cat horse bird tree river stone lamp chair table book song letter boat wheel bread soup apple coat hat ring "
        "clock door garden window bridge picture basket hammer cup".split()
    ),
    "ADV": tuple("often never always soon slowly quickly gladly rarely again today alone together".split()),
    "PREP": tuple("in near by under behind".split()),
    "PLACE": tuple(
        "village town city harbour forest valley market school station castle island beach meadow field farm mill church "
        "tower camp park".split()
    ),
}
# Insults; the first half of each class is group A, the second group B.
REPLY_BAD = {
    "ADJ": tuple("stupid dumb ugly filthy rotten nasty vile lousy foul crooked lazy worthless".split()),
    "NOUN": tuple("idiot fool liar pig rat brute creep snake thief bum coward scum".split()),
}
# Opposite traits of a speaker; each of a pair goes with three words of the class that the other does not go with.
REPLY_TRAITS = {
    "ADJ": (("calm", "wild"), ("rich", "poor"), ("young", "aged"), ("merry", "grim")),
    "NOUN": (("farmer", "sailor"), ("baker", "smith"), ("singer", "painter"), ("teacher", "doctor")),
}
# What is asked about; each theme goes with three adjectives and three nouns, its words are never those of another.
REPLY_THEMES = tuple("sea music war food love law sport trade".split())
REPLY_FUNCTION = ("about", "?")

# --- facts: passages about things of one name, and questions that several of them answer ---------------------------------
FACT_NAMES = coined("Bal Dor Fen Gim Hul Kas Lom Mir Nad Pol Rus Tev".split(), "a en is or um ek ia ob".split())
FACT_TYPES = tuple("lake town ship mine bridge abbey".split())
# An attribute has three names, any of which a passage or a question may use.
FACT_ATTRIBUTES = tuple(
    tuple(names.split())
    for names in (
        "colour hue tint",
        "owner holder keeper",
        "founder creator maker",
        "emblem symbol badge",
        "material substance fabric",
        "purpose use function",
        "patron sponsor backer",
        "style manner fashion",
        "origin source root",
        "motto slogan saying",
    )
)
FACT_VALUES = coined([c + v for v in "aiu" for c in "bdfgklmnprst"][:20], [c + "o" for c in "dfgklmnprs"])

# --- conversations: singers and their albums -----------------------------------------------------------------------------
SINGER_NAMES = (
    tuple("Velda Odo Ina Tarek Mona Ruben Selma Ivo".split()),
    coined("Ko Fi Lar Bren".split(), "ss nn vik dal".split()),
)
ALBUM_NAMES = coined("Mir Tav Osk Har Lum Zel Quo Pell Dra Yor".split(), "ell or ande ivo ith".split())
SONG_NAMES = coined("Ban Cor Dul Fey Gan Hol Jas Wen Rin Sob".split(), "dra mo tily ska ret".split())
PRODUCER_NAMES = (
    tuple("Hugo Edda Karl Nils Olga Piet Rosa Sven".split()),
    coined("Am As Ek El Ur".split(), "berg holm stad".split()),
)
RECORDING_PLACES = coined("Var Nor Sund Keld Brim".split(), "by vik stead ford".split())
# What a place in the order is called.
ORDINALS = (("first", "debut"), ("second", "sophomore"), ("third",), ("fourth",))


def distinct(*groups: Iterable[str]) -> tuple[str, ...]:
    """Give every word of the groups once, in the order of first mention; phrases count as their words."""
    return tuple(dict.fromkeys(word for group in groups for phrase in group for word in phrase.split()))


IDIOM_WORDS = distinct(IDIOM_FUNCTION, *TOPIC_OWN, IDIOM_POOL)
POLARITY_WORDS = distinct(POLARITY_FUNCTION, GOOD_WORDS, BAD_WORDS, POSITIVE, NEGATIVE, POLARITY_NOUNS, NEUTRAL)
HOUSEHOLD_WORDS = distinct(
    HOUSEHOLD_FUNCTION, VERDICTS, PEOPLE, KEEPING, COLOURS, OBJECTS, PLACES, UNSTATED, REMEDIES, *REMEDIES.values()
)
EPISODE_WORDS = distinct(
    [MADE_UP_TASK],
    NATURAL_TASKS,
    *NATURAL_TASKS.values(),
    MADE_UP_LABELS,
    EPISODE_NEUTRAL,
    *(topics.values() for topics in NATURAL_TASKS.values()),
)
CLIENT_WORDS = distinct(
    CLIENT_FUNCTION, WEEKDAYS, CLIENT_NOUNS, CLIENT_ADJECTIVES, CLIENT_VERBS, CLIENT_ADVERBS, CLIENT_PLACES
)
REPLY_WORDS = distinct(
    REPLY_FUNCTION,
    REPLY_THEMES,
    *REPLY_CLASSES.values(),
    *REPLY_BAD.values(),
    *(pair for pairs in REPLY_TRAITS.values() for pair in pairs),
)
