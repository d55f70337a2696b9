"""Rules for captions: refusals, leaks of drawn marks and of the blurred background, remarks about the task, language.

The rules know English and match relations rather than words: a tattoo may be outlined in black ink, a curb may have a
marked section and a picture may hang on a wall, but a chair is not "outlined in yellow". Text in quotation marks is
taken to be written on something in the picture and is left alone.
"""

import re
from collections import Counter
from functools import cache
from typing import Any

from ureca.curation.settings import CaptionRules
from ureca.llm.structured import InvalidResponseError, check_not_refusal

_MIN_WORDS_OF_A_LANGUAGE = 5
_MIN_LANGUAGE_PROBABILITY = 0.6
_MIN_ENGLISH_PROBABILITY = 0.2
_LANGUAGES = re.findall(
    r"\w+",
    "af ca cs cy da de en es et eu fi fr ga hr hu id is it lt lv ms nl no pl pt ro sk sl sq sv sw tl tr vi",
)
"""Languages in Latin letters that chat models answer in; rarer ones would share the probability of their relatives."""
_MIN_ENGLISH_FRACTION = 0.15
_ENGLISH_WORDS = re.compile(
    r"\b(?:the|of|with|and|its|his|her|their|from|behind|beside|near|above|below|under|next|standing|holding|wearing|"
    r"small|"
    r"large|white|black|blue|green|brown|wooden|left|right|front|back|which|that|is|are|by)\b",
    re.IGNORECASE,
)
"""Words that are frequent in English captions and rare in other languages in Latin letters."""

_WRITTEN_IN_ANOTHER_SCRIPT = re.compile(
    r"(?<=[A-Za-z])(?: (?:reading|reads?|saying|says?|labell?ed|inscribed|lettered|words?|text|characters?|lettering|"
    r"kanji|"
    r"hanzi|title|name)):?(?: (?:with|as))? [^\W\d_A-Za-z\u0000-\u024f][^\W_A-Za-z\u00c0-\u024f]{0,39}(?=[\s.,;:!?)]|"
    r"$)",
    re.IGNORECASE,
)

_QUOTED = re.compile(
    r"\"[^\"\n]{1,200}\"|\u201c[^\u201d\n]{1,200}\u201d|(?<!\w)['\u2018][^'\u2019\n]{1,200}['\u2019](?!\w)"
)

_MARK_COLOUR = (
    r"(?:(?:bright|light|dark|thin|thick|solid|dashed|vivid|neon)[ -]){0,4}"
    r"(?:yellow|blue|red|orange|green|magenta|cyan|purple|violet|pink|lime|teal|turquoise|gold|colou?red)"
)
_LINE = (
    r"(?:lines?|contours?|outlines?|borders?|rings?|box(?:es)?|circles?|rectangles?|frames?|loops?|"
    r"strokes?|boundar(?:y|ies)|marks?|markings?|edges?)"
)
_DRAWN = (
    r"(?:outlined|circled|encircled|marked|enclosed|surrounded|highlighted|bordered|delineated|"
    r"traced|boxed|ringed|bounded|framed|indicated)"
)
_WITH_BORDERS = (
    r" (?:[\w-]+ )?(?:saris?|sarees?|shawls?|scar(?:f|ves)|dress(?:es)?|skirts?|robes?|aprons?|kimonos?|"
    r"(?:table)?cloths?|napkins?|towels?|rugs?|carpets?|mats?|blankets?|quilts?|bedspreads?|curtains?|"
    r"handkerchie(?:f|ves)|"
    r"pillowcases?|plates?|platters?|dish(?:es)?|bowls?|saucers?|trays?|signs?|posters?|cards?|stamps?|envelopes?|"
    r"pages?|labels?|"
    r"certificates?|flags?|banners?|pennants?|flower ?beds?|lawns?|paths?)\b"
)
"""Textiles, dishes, printed things and flower beds, which have borders of their own ("a red-bordered rug")."""
_NOT_IN_BOXES = (
    r"(?:person|people|man|woman|men|women|player|rider|cyclist|pedestrian|runner|driver|worker|figure|car|truck|bus|"
    r"van|taxi|vehicle|motorcycle|bicycle|bike|scooter|train|boat|ship|plane|airplane|tree|bush|building|house|tower|"
    r"window|"
    r"door|bench|table|chair|sofa|couch|bed|horse|cow|elephant|giraffe|zebra|sheep|lamp ?post|street ?light|object)"
)
"""Things that no coloured box, circle or rectangle of the world encloses."""
# What really has coloured lines around or on it.
_PAINTED = re.compile(
    r"\b(?:parking|lane|lanes|road|roadway|street|court|field|pitch|runway|crosswalk|crossing|curb|"
    r"pavement|asphalt|zone|"
    r"track|playground|letters?|lettering|logo|text|sign|plate|tiles?|stripes?|painted)\b",
    re.IGNORECASE,
)

_MARKS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        # "outlined in blue", "surrounded by a thin yellow line"; not "surrounded by green grass"
        rf"\b{_DRAWN} (?:\w+ly )?(?:in|by|with|within|inside|using) (?:(?:a|an|the|its) )?(?:(?:thin|thick|"
        rf"bold|faint|narrow) ){{0,3}}{_MARK_COLOUR}"
        rf"(?: (?:thin |thick |solid |dashed )*{_LINE}\b|(?=\s*(?:[.,;:!?)]|$|(?:and|or)\b(?! (?:\w+ )?(?:yellow|"
        rf"blue|red|orange|green|purple|pink|white|black|gold) \w+)|is\b|"
        rf"on (?!all\b|both\b|each\b|every\b)|in\b|at\b|near\b|from\b|stands?\b|that\b|which\b)))",
        # "highlighted in yellow"; not "outlined in blue ink"
        rf"\b(?:outlined|circled|encircled|highlighted|delineated|boxed|marked) (?:\w+ly )?(?:in|by|"
        rf"with) (?:a |an |the )?{_MARK_COLOUR}\b"
        rf"(?=\s*(?:[.,;:!?)]|$)|\s+(?:\w+ )?{_LINE}\b(?! (?:of|on) the (?:road|street|court))|\s+(?:and|or|on|in|at|"
        rf"near|by|for|"
        r"with|from|to|is|are|has|have|that|which|stands?|sits?|lies|hangs?|next|behind|above|below|beside|against|"
        r"left|right|"
        r"inside)\b)",
        rf"\b{_MARK_COLOUR}-(?:outlined|circled|bordered(?!{_WITH_BORDERS})|marked|boxed|highlighted)\b|"
        rf"\b{_MARK_COLOUR} outlines?\b|\b{_MARK_COLOUR}-(?:lined|edged|framed|contoured) (?:object|region|area|item|"
        rf"thing|part|"
        r"section|portion|subject)\b",
        # "with a blue ring around it"
        rf"\b{_MARK_COLOUR} (?:\w+ )?(?:{_LINE}(?<!s)|boxes|contours|outlines|lines) (?:drawn |that goes |going |is )?"
        r"(?:around|surrounding|encircling|enclosing|outlining|marking|highlighting)\b"
        r"(?! (?:each|every|(?:(?:the|its|their|his|her|an?) )?(?:[\w-]+'s )?(?:left |right )?(?:edges?|rims?|hem|"
        r"neck|collar|"
        r"cuffs?|sleeves?|brim|base|lip|top|heads?|eyes?|wrists?|waists?|ankles?|fingers?|arms?|legs?|tails?|mouth|"
        r"nose|"
        r"bottom|foot|stem|trunk|throat|chest|beak)\b))",
        rf"\b{_MARK_COLOUR} (?:\w+ )?{_LINE} (?:drawn |that goes |going )?(?:around|surrounding|encircling) (?:it|"
        r"them|him|her(?! (?!is\b|and\b|in\b|on\b|at\b|as\b)[a-z])|"
        r"the (?:object|region|item|thing|area))\b",
        r"\b(?:indicating|marking|highlighting|denoting|delimiting) (?:the|this|that) (?:\w+ )?(?:region|"
        r"area of interest|object|target)\b",
        rf"\bthe {_MARK_COLOUR} {_LINE} (?:surrounds?|encloses?|outlines?|encircles?|indicates?|highlights?|traces?|"
        rf"delineates?|borders|"
        r"runs around|goes around|"
        rf"marks? an?)\b",
        rf"\b(?:inside|within) (?:a|an|the) {_MARK_COLOUR} lines?\b",
        r"\b(?:item|object|region|area|thing|part|portion) (?:highlighted|outlined|circled|indicated|shown|selected|"
        r"depicted)(?=\s*(?:[.,;:)]|$|is\b|are\b|has\b|here\b|contains?\b|by\b|in\b|with\b))"
        r"(?! (?:in|by|with) (?:black|white|brown|chalk|ink|paint|profile|relief|bloom|flight))",
        # No box of the world is magenta; a red one may be.
        rf"\b(?:in|inside|within|by|with) (?:a|an|the) (?:\w+ )?(?:magenta|cyan) {_LINE}\b",
        # "yellow highlighting along its boundary"; not "yellow highlights in her hair"
        rf"\b{_MARK_COLOUR} (?:highlight(?:s|ing)?|outlining|tracing|contouring) (?:along|around|on|over|at) (?:the|"
        r"its|their|his|her) (?:\w+ )?(?:boundar(?:y|ies)|border|outline|contour|perimeter|edges?)\b",
        # "the person inside the blue box"; not "a toy inside the blue box"
        rf"(?<!toy )(?<!model )(?<!miniature )(?<!plastic )\b{_NOT_IN_BOXES}s? (?:(?:(?:that|which|who) )?"
        r"(?:is|are) )?(?:(?:standing|sitting|parked|shown|seen|located|visible|alone) )?"
        rf"(?:inside|within|in|enclosed (?:in|by|within)) (?:a|an|the) {_MARK_COLOUR} "
        r"(?:box|circle|square|rectangle|ring|oval|ellipse)\b(?!-| (?:seat|of|office)\b)",
        # "inside the yellow outline"
        rf"\b(?:in|inside|within|by|with) (?:a|an|the) {_MARK_COLOUR} (?:contours?|outlines?|boundary|"
        rf"bounding box|polygon|mask|highlight)\b",
        rf"\b(?:inside|within) (?:a|an|the) {_MARK_COLOUR} marking\b",
        rf"\b{_MARK_COLOUR} (?:contours?|bounding box(?:es)?|polygons? around|outlining|highlighting)\b",
        r"\b(?:has|have|had) been (?:\w+ly )?(?:outlined|highlighted|circled|annotated|segmented|masked|cropped|"
        r"boxed)\b"
        r"(?! (?:in|by|with) (?:black|white|brown|chalk|ink|paint|pencil|charcoal))",
        r"\bbounding box(?:es)?\b|\bcontour lines? (?:around|of the (?:region|object))\b|\b(?:the|its|"
        r"this|a) contour\b(?! of\b)",
        r"\b(?:the|this|that|an?) (?:selected|chosen|specified|queried) (?:area|region|object|part|portion|segment|"
        r"item)\b",
        # "the thing inside the line", "indicated by the outline"; not "bounded by a line of trees"
        r"\b(?:thing|object|item|person|area|part|region|one|everything|what is) (?:that is |which is )?(?:inside|"
        r"within|"
        r"enclosed (?:by|in|within)|bounded by|surrounded by) (?:the|a|an) (?:[\w-]+ )?(?:line|outline|contour|border|"
        r"boundary|box|ring|polygon)\b(?! of\b)",
        r"\b(?:indicated|outlined|circled|encircled|highlighted|delineated|emphasi[sz]ed|traced|denoted|marked out) "
        r"(?:by|with|in|using|through) (?:the|a|an) (?:(?:bright|thin|thick|bold|visible|glowing|drawn|solid|vivid|"
        rf"{_MARK_COLOUR}) ){{0,4}}(?:line|outline|contour|boundary|border|ring|box|highlight|annotation)s?\b(?! of\b)",
        rf"^\W*(?:the|an?) (?:area|region|object|part|portion|section|item|thing|"
        rf"shape) in {_MARK_COLOUR}(?=\s*(?:[.,;:]|$)| (?:is|are|"
        r"shows?|contains?|covers?|includes?|depicts?|has)\b)",
        r"\bcontoured (?:area|region|object|part)\b",
        r"\b(?:outlined|circled|encircled|marked|masked|segmented|boxed|annotated|enclosed|delineated|bounded|"
        r"delimited) "
        r"(?:area|region|object|item|thing|element|subject|instance|part|portion)\b(?! of (?:the|"
        r"a) (?:curb|road|street|wall|trail|map|floor))",
        r"\b(?:the|this|that|a|an) (?:highlighted|indicated|circled|annotated|specified|designated|"
        r"target(?! (?:with|on|in|at|of|has|and|for|from|hangs?|stands?|leans?|painted|board|practice|shooting)\b)) "
        r"(?!hair|text|words?\b|passages?\b|routes?\b|sentences?\b|letters?\b|strands?\b|locks\b|dates?\b|"
        r"answers?\b|lines?\b|numbers?\b|board\b|menu\b|entry\b|tab\b|option\b|rows?\b|columns?\b|cells?\b|"
        r"link\b)\w+",
        r"\bis (?:highlighted|outlined|circled|encircled)(?=\s*(?:[.,;]|$|in\b|by\b|with\b))(?! (?:in|by|"
        r"with) (?:black|white|grey|gray|brown|ink|charcoal|chalk|pencil|sunlight|light|the (?:sun|"
        r"light)))",
    )
)

_BLUR = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"\b(?:blurred|blurry|blurring|out[- ]of[- ]focus|obscured|gr[ae]yed[- ]out|faded[- ]out|"
        r"masked[- ]out) (?:out )?(?:\w+ )?"
        r"(?:background|surroundings?|backdrop|environment|rest|area|region|image|photo|picture|crop|"
        r"section|edges?)\b(?! (?:on|of|in|across) (?:(?:the|its|his|her|their|a|an) )?(?:[\w-]+ )?(?:screens?|"
        r"displays?|monitors?|viewfinders?|televisions?|tv|phones?|tablets?|laptops?|walls?|posters?|frames?|"
        r"magazines?|pages?|"
        r"billboards?|newspapers?|lens(?:es)?|mirrors?)\b)",
        r"\b(?:background|surroundings?|surrounding (?:area|region|scene|parts?)|backdrop|rest of (?:the|"
        r"it)(?: \w+)?|(?:everything|all)(?: else| around it)?|environment|area around (?:it|them)|edges) "
        r"(?:(?:is|are|was|were|has been|have been|being|appears?|all|completely|heavily|slightly|mostly|"
        r"intentionally|partly) )*(?:un)?(?:blurred|blurry|blurring|out of focus|obscured|gr[ae]yed|"
        r"removed|masked|faded|hidden)\b",
        r"\b(?:is|are|being|partially|heavily|slightly|completely|not) blurred (?:out|by|for)\b"
        r"(?!(?<=by) (?:[\w-]+ ){0,3}(?:speed|motion|movements?|spin\w*|rain\w*|wind|water|fog|mist|heat|steam|"
        r"exposure|tears|vibration|turning|rotation|flight)\b)|\b(?:is|are|was) not blurred\b|"
        r"\bblurr(?:ed|y) (?:around|along|at|outside|beyond|towards?) (?:of )?(?:the|its|their) (?:\w+ )?(?:edges?|"
        r"borders?|sides|outside|outline|rest|object|region)\b(?! (?:by|with|from)\b)|"
        r"\b(?:remaining|surrounding|outer) (?:\w+ ){1,2}(?:is|are|being) (?:\w+ )?(?:blurred|blurry|out of "
        r"focus|gr[ae]yed|faded)\b|"
        r"\b(?:appears?|shown|placed|stands?|floats?) (?:alone|isolated|by itself) (?:on|in|against) an? (?:\w+ )?"
        r"(?:gr[ae]y|white|black|blank|plain|empty|neutral|blurr(?:ed|y)) (?:\w+ )?(?:background|backdrop|canvas|"
        r"space|void)\b|"
        r"\bblurred out\b|\bunblurred\b|\bthe blur\b|\bblur(?:ring)? effect\b",
        r"\b(?:on|against|in front of|over|with|upon) (?:an? |the )?(?:\w+ )?(?:plain|solid|uniform|blank|"
        r"neutral|flat|empty|featureless|monochrome|smooth)(?:[ ,-]+(?:plain|solid|light|dark|gr[ae]y|"
        r"white|black|neutral|beige|blurr(?:ed|y)))* (?:background|backdrop)\b(?! of\b)",
        r"\b(?:on|against|with) an? (?:light |dark |pale |soft |blurred |blurry )*(?:gr[ae]y|gr[ae]yish|"
        r"blurred|blurry|transparent|hazy) (?:background|backdrop)\b(?! of\b)",
        r"\b(?:an?|the) (?:[\w-]+,? ){0,3}(?:gr[ae]y\w*|blurr\w+|out[- ]of[- ]focus|featureless|plain|uniform|blank|"
        r"neutral|"
        r"hazy)(?:[, -]+(?!and\b|of\b|with\b)[\w-]+){0,2}[, -]+(?:background|backdrop)(?=\s*(?:[.,;:!?)]|$|and\b|"
        r"with\b|"
        r"that\b|which\b|is\b|in\b|behind\b))",
        r"\b(?:faded|gr[ae]y(?:ed)?|blurr\w+|hazy|obscured|featureless),? (?:and )?(?:\w+,? ){0,2}surround(?:ings?|"
        r"s)\b",
        r"\b(?:rest|remainder) of the (?:image|picture|photo|photograph|view|scene|frame) (?:is|being|was|has|"
        r"(?:\w+ly )?(?:blurred|blurry|out of focus|gr[ae]yed|faded|hidden|masked))\b",
        r"\b(?:everything|all) (?:but|except|apart from|other than|beyond) (?:[\w-]+ ){1,4}(?:is|was|has been|being) "
        r"(?:\w+ly )?(?:blurred|blurry|out of focus|gr[ae]yed|faded|hidden|masked)\b",
        r"\b(?:the rest|all else|everything else)(?: is| being| are| was)? (?:\w+ly )?(?:blurred|blurry|out of focus|"
        r"gr[ae]yed|faded)\b",
        r"\b(?:image|picture|photo|photograph|scene|view) (?:is|was|has been|appears) (?:\w+ )?(?:blurred|blurry|"
        r"gr[ae]yed)\b",
        r"\bisolated (?:on|against|from)\b|\btransparent background\b|\bcut[- ]out (?:of|on|from|"
        r"against)\b|\b(?:floating|suspended) (?:in|on|against) (?:a |an )?(?:empty|blank|gr[ae]y|white|"
        r"black|blurr(?:ed|y)) (?:space|background)\b",
    )
)

_PICTURE = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"\bclose[- ]?up (?:view|shot|image|photo|photograph|picture|crop|look|of)\b|\bzoomed[- ]in\b|"
        r"^\W*(?:an? )?(?:extreme )?close[- ]?up\b|\b(?:in|as) (?:an? )?(?:extreme )?close[- ]?up\b",
        r"^\W*(?:the|this) (?:(?!framed|hanging|printed|painted|oil|wall|mounted)\w+ )?(?:image|photo|photograph|"
        r"picture|crop|"
        r"view|snippet|screenshot|scene)s? (?:shows?|depicts?|displays?|features?|contains?|captures?|presents?|"
        r"provides?|"
        r"illustrates?|reveals?|focuses|is (?:of|a)|are|appears?)\b",
        r"^\W*(?:the|this) (?:image|photo|photograph|picture|crop) (?:is|was|has been) (?:\w+ )?(?:divided|split|"
        r"cropped|taken|"
        r"zoomed|composed|made up|focused|centred|centered|too|very|not|of)\b",
        r"^\W*(?:this|it|that) is (?:an?|the) (?:[\w-]+ ){0,2}(?:image|photo|photograph|picture|crop|view|shot|"
        r"screenshot) (?:of|showing|depicting)\b",
        r"^\W*(?:an? |(?=\w+ (?:image|view|shot|crop)\b))(?:cropped|partial|detailed|isolated|magnified|enlarged|"
        r"zoomed|"
        r"blurred|full|high[- ]angle|low[- ]angle|side|front|rear|top|"
        r"aerial)? ?(?:image|view|shot|crop) (?:of|showing|depicting)\b",
        r"\bcropped (?:image|photo|picture|view|version|section|area|region|part)\b|\bthis crop\b|"
        r"\bis cropped\b|\b(?:in|of) the crop\b(?! (?:field|rows?|circle))",
        r"\b(?:first|second|third|left|right|provided|given|full|cropped|original|whole|entire|other|"
        r"previous|top|bottom) (?:image|photo|photograph|picture|view|crop)s?\b(?! (?:frame|album|book|"
        r"window|rail|on the wall))",
        r"\b(?:shown|seen|visible|depicted|pictured|displayed|presented|identified|labell?ed|"
        r"located) (?:\w+ )?(?:in|on|by|within) (?:the|this) (?:image|photo|photograph|picture|crop|"
        r"view)\b(?! (?:frame|album|book|window|rail|on the wall))",
        r"\b(?:in|of|from) this (?:image|photo|photograph|picture|crop|view|frame)\b",
        r"^\W*(?:image|snapshot|crop|shot|cut-?out) (?:of|showing|depicting)\b(?!.*\b(?:carved|painted|etched|"
        r"engraved|woven|"
        r"embroidered|printed|tattooed|screen)\b)|\b(?:snapshot|view|image|"
        r"crop) of the region\b",
        # A photograph in the picture hangs or stands somewhere.
        r"^\W*an? (?:color |colour |digital )?(?:photo|photograph|picture) (?:of|showing)\b(?!.*\b(?:frames?|framed|"
        r"hang\w*|"
        r"hung|pinned|taped|album|mounted|shelf|fridge|refrigerator|board|magazine|poster|printed|stuck|display\w*|"
        r"screen|"
        r"held|leaning|propped|billboard|newspaper|book|cover|mantel\w*)\b)",
        r"^\W*(?:the|an?|this) (?:[\w-]+ )?(?:object|item|thing|subject|region|area|part|section|portion|segment|"
        r"element|focus) "
        r"(?:(?:that is |which is )?(?:shown|seen|visible|depicted) )?(?:in|of|within|from) (?:the|"
        r"this) (?:\w+ )?(?:image|photo|"
        r"photograph|picture|crop|view|scene)\b(?! (?:frame|album|book|window|rail|hang\w+|on the wall))",
        r"(?:^|[.!?]\s+)(?:the|this) image (?:does(?: not|n't)|also|only|shows?|depicts?|itself)\b",
        r"(?:^|[.!?]\s+)\W*(?:in|within|across) (?:the|that) (?:\w+ )?(?:image|photo|photograph|picture|crop|view|"
        r"scene),",
    )
)

_WORN_MASK = (
    r"(?=.{0,300}\b(?:carved|wood(?:en)?|surgical|fac(?:e|ial)|eyes?|eye ?holes?|mouth|nose|chin|beard|ears?|straps?|"
    r"elastic|worn|wears?|"
    r"wearing|ceremonial|tribal|carnival|costume|theatre|theater|diving|snorkel|gas|ski|welding|venetian|feathers?|"
    r"raffia|paint(?:ed)?|"
    r"papier|fabric|cloth|rubber|latex|plastic|cotton|hangs?|hanging|nail)\b)"
)
"""Words of a caption whose mask is one that people wear or hang on a wall."""

_SHOWN_ON = re.compile(
    r"\b(?:covers?|posters?|screens?|displays?|viewfinders?|monitors?|televisions?|tv|tablets?|phones?|billboards?|"
    r"magazines?|"
    r"pages?|paintings?|prints?|cards?|canvas(?:es)?|banners?|murals?) (?:(?:that|which) )?(?:with|of|shows?|showing|"
    r"displays?|"
    r"displaying|depicts?|depicting|featuring|bearing) (?:an? |the )?(?:[\w-]+ )?$",
    re.IGNORECASE,
)
"""Words before those of a picture that is itself in the scene."""

_META = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"^\W*(?:(?:my|our|your|the|a|an|suggested|target|selected|main|proposed|possible|short|detailed|final|unique|"
        r"new|revised|refined|"
        r"updated|rewritten|region|object|image|one-line|described|depicted|shown|pictured|given|indicated|marked|"
        r"one[- ]sentence) )*(?:caption|description|answer|output|response|label|title|result|rewrite|"
        r"summary|note|target|region|object|candidate|mask|segment|instance)(?: (?:of|for) (?:the|"
        r"this) (?:\w+ )?\w+)?\s*(?:\d+ ?)?(?:[:\u2013\u2014=]|-+\s)",
        r"^\W*(?:(?:the|a) )?(?:region|segment|mask|crop) (?:containing|showing|depicting|consisting|covering)\b|"
        r"^\W*to (?:describe|caption|summari[sz]e)\b",
        r"^\W*(?:my|our|your|the) (?:(?:final|short|best|correct|right) )?(?:answer|description|response|output|"
        r"sentence) "
        r"(?:is|would be|could be|should be|reads)(?:\W+(?:an?|the|one|two|that|as follows)\b|:)",
        r"\b(?:suitable|possible|good|better|accurate|appropriate|fitting|concise) (?:caption|description)\b",
        r"\b(?:object|region|item|area|thing|element|part) in question\b|"
        r"\b(?:object|region|item|area|thing|subject|part) of (?:interest|focus)\b|\blet(?:'s| us)\b|\b(?:shown|"
        r"pictured|depicted|seen|"
        r"visible) here\b|"
        r"^\W*(?:pictured|shown|depicted|seen|displayed|visible) (?:is|are)\b|"
        r"^\W*what (?:is|we see|you see|can be) (?:shown|seen|visible|depicted|here|is)\b",
        r"\bas (?:described|mentioned|noted|stated|specified|indicated|requested|instructed|depicted|provided)\b",
        r"\b(?:the )?user (?:asked|wants|requested|provided|says|needs)\b|^\W*(?:user|assistant|system|human|"
        r"model)\s*:",
        r"\b(?:these|those|this|that|the|all|both|child|children's) (?:\w+ )?captions? (?:describes?|mentions?|says?|"
        r"states?|"
        r"tells?|is|are|provided|given|of)\b|\bin the captions?\b",
        r"\b(?:caption|description) (?:of|for) (?:the|this) (?:\w+ )?(?:region|object|area|image|photo|picture|item|"
        r"segment)\b",
        r"\b(?:given|target|indicated|selected|specified|shown|described|provided|masked|current|queried) (?:region|"
        r"segment|mask|area)\b"
        r"|\b(?:the following|below) is (?:an?|the|my|your)\b|\b(?:we|you|one) (?:can |could |may )?(?:also |"
        r"clearly )?see\b",
        r"^\W*(?:based on|judging (?:by|from)|given (?:the|that|what)|considering|according to)\b",
        r"\bI(?:'m|'d|'ve|'ll| am| would| think| believe| guess| assume| suspect| can| can't| cannot| could| see| have|"
        r" will| do| don't| need)\b(?! (?:class|century|era|style)\b)",
        r"\bhere(?:'s| is| are) (?:the|a|an|my|your|one) (?:\w+[ -]){0,4}(?:captions?|descriptions?|"
        r"sentences?|answers?|paragraphs?|versions?)\b",
        r"^\W*(?:sure|certainly|of course|okay|ok|absolutely|great|yes)[,!.] |^\W*(?:here|there) (?:you go|it is|"
        r"you are)\b",
        r"\b(?:based on|according to|given|as described in|combining|from) (?:the|these|those|your|its|"
        r"all) (?:\w+ ){0,3}(?:captions?|descriptions?|information|prompts?|instructions?|"
        r"details provided|views?|images?)\b",
        rf"\b(?:the|this|that|target|indicated|selected|specified|given|shown|described) (?:region|segment|"
        rf"masked area|mask(?!{_WORN_MASK})) (?:shows?|depicts?|contains?|displays?|features?|includes?|represents?|"
        r"consists?|captures?|covers?|is|in|appears?|of interest|can|corresponds?)\b",
        r"^\W*(?:the|this) (?:object|item|thing|subject) (?:is|appears|seems|looks|shows?|depicts?|can be|could be|"
        r"may be)\b",
        r"^\W*it is (?:an? )?part of this\b|\bcaptioned (?:so|as)\b|\bcaptions? (?:could|would|might|should|may|can|"
        r"must)\b|"
        r"\b(?:we|you)(?:'re| are) (?:looking|seeing|shown|given|asked)\b",
        r"^\W*(?:this|the (?:target|main|central|depicted|described|pictured)) (?:region|area|segment|"
        r"object|part|section|item|subject) (?:shows?|depicts?|contains?|displays?|features?|includes?|"
        r"represents?|consists?|captures?|is)\b",
        r"\bthis region\b|\bthe target region\b|\bregion of interest\b|\bthe caption\b(?! (?:below|under|"
        r"on|beneath|of the (?:photo|picture|painting|cartoon)))|"
        r"\blet me\b|\bplease (?:note|let)\b|\bas requested\b",
        r"\b(?:unlike|distinct from|distinguish(?:es|ed|ing)? (?:it|this)? ?from|"
        r"different from) (?:the )?(?:other )?(?:regions?|masks?|candidates?|look-alikes?|distractors?)\b",
    )
)

_HEDGES = re.compile(
    r"\b(?:difficult|hard|impossible|not possible|challenging|tough) to (?:determine|tell|see|say|"
    r"identify|discern|make out|describe|recogni[sz]e|ascertain|know|distinguish)\b"
    r"|\b(?:it is|it's|its exact \w+ is|what it is is) (?:un|not )clear\b|\bunclear (?:what|whether|if|"
    r"which)\b|\bnot clear (?:what|whether|if|which)\b"
    r"|\b(?:cannot|can't|can not|could not|couldn't) be (?:\w+ly )?(?:determined|identified|discerned|seen clearly|"
    r"made out|recogni[sz]ed|described|discerned|ascertained|distinguished)\b|\bcannot be clearly seen\b"
    r"|\btoo (?:\w+ (?:and|or) )?(?:small|tiny|blurry|dark|indistinct|blurred|unclear|vague|low|pixelated|distant|"
    r"limited|grainy|narrow|close|low[- ]res(?:olution)?) "
    r"to (?:be )?(?:determined?|tell|see|seen|say|identify|identified|discern(?:ed)?|make out|made out|describ(?:e|ed)|"
    r"recogni[sz]ed?|know|distinguish(?:ed)?|provide|give|read)\b|\bwithout (?:more|further|"
    r"additional) (?:context|information|detail)\b"
    r"|\b(?:possibly|perhaps|maybe|likely|"
    r"probably) (?:an? )?(?:\w+ ){0,3}or (?:an? )?(?:\w+ ){0,2}(?:something|similar|other)\b|"
    r"\bsome (?:kind|sort|type) of (?:object|thing|item|shape|structure)\b|\bof some (?:kind|sort|type)\b"
    r"|\b(?:unidentified|unidentifiable|unknown|indiscernible|unrecogni[sz]able|indistinct|undefined|ambiguous|unclear)"
    r" (?:\w+,? ){0,2}(?:object|thing|item|shape|form|structure|element|material)s?\b"
    r"|\b(?:of|an?) (?:unknown|unclear|uncertain|undetermined) (?:\w+ )?(?:nature|type|kind|origin|purpose|identity|"
    r"material)\b"
    r"|\b(?:is|are|remains?|seems?|appears?) (?:\w+ )?(?:unclear|ambiguous|uncertain|undetermined|unknown|"
    r"indeterminate|unidentifiable|"
    r"indiscernible)\b"
    r"|\b(?:this|that|it|which) (?:is|are) not (?:very |entirely |quite )?clear\b"
    r"|\b(?:low|poor) (?:image )?(?:resolution|quality)\b|\bor something else\b|\bsomething that (?:cannot|can't|"
    r"could)\b"
    r"|^\W*(?:not (?:quite |entirely |really )?(?:sure|certain)|(?:maybe|perhaps|possibly|probably) (?:an?|the|"
    r"some))\b|,? maybe (?:an?|some|the)\b"
    r"|^\W*(?:it )?(?:could|might|may) be\b|^\W*(?:it )?(?:appears|seems) to be (?:some|something)\b"
    r"|\b(?:not sure|unsure|uncertain) (?:what|if|whether|which|but|about)\b|\bnot (?:enough|"
    r"sufficient) (?:\w+ )?(?:information|detail|context)\b|\binsufficient (?:\w+ )?(?:information|"
    r"detail|context)\b",
    re.IGNORECASE,
)

_PLACEHOLDER = re.compile(
    r"^\W*(?:(?:a |one |the |your )?(?:single |short |one[- ])?(?:sentence|detailed|"
    r"unique)? ?(?:sentence )?captions?(?: here| goes here| text| of the (?:region|object))?|string|text|"
    r"none|null|n/?a|nan|undefined|unknown|todo|tbd|example|placeholder|lorem ipsum.*|(?:your |"
    r"the )?(?:answer|description|text|output)(?: here| goes here)?|one (?:sentence|paragraph)|"
    r"no (?:caption|description|answer|text|object|region)(?: (?:is )?(?:available|provided|given|found|possible|"
    r"needed))?|"
    r"not applicable|insert .* here)\W*$"
    r"|^\W*(?:an?|one|the|your) (?:short |single |detailed |brief )?(?:sentence|caption|description|"
    r"paragraph) (?:describing|about|"
    r"of|for|that) "
    r"|<(?:caption|description|answer|object|color|colour|text|region|name|noun|image|mask|attribute)s?>|"
    r"\[(?:insert|object|colou?r|description|caption|noun|name|attribute|text|your)\b[^\]]*\]|\{(?:object|"
    r"colou?r|description|caption|noun|name|attribute|text|answer|index)\}",
    re.IGNORECASE,
)

_GENERIC = re.compile(
    r"^\W*(?:(?:an?|the|this|that|some|one|single|small|large|big|main|certain|visible|other|part|piece|portion|"
    r"section|"
    r"view|bit|of) )*"
    r"(?:objects?|items?|something|regions?|areas?|parts?|segments?|elements?|stuff|"
    r"(?:image|picture|photo|photograph|scene|background|foreground|surface))"
    r"(?: (?:of|in|on|at|within|from) (?:(?:an?|the|this) )?(?:(?:left|right|top|bottom|upper|lower|middle|center|"
    r"centre) )?"
    r"(?:image|picture|photo|photograph|scene|background|foreground|surface|frame|view|something|object|thing|"
    r"left|right|top|bottom|middle|center|centre|side|corner|edge))*\W*$",
    re.IGNORECASE,
)
"""Captions that would fit anything: "An object.", "A part of the image."."""

JSON_IN_TEXT = re.compile(
    r"\{\s*\\?\"|[{\[]\s*\\?[\"']?[\w -]{1,60}\\?[\"']?\s*:|^\W*caption\W*[\"']\s*:|[\"']\s*\}\W*$", re.IGNORECASE
)
"""A JSON object or a piece of one, such as of one whose end was doubled."""

_MARKDOWN = re.compile(
    r"\*\*|__\w|`|^\s*#{1,6}\s|^\s*[-*\u2022+]\s+\S.*$|^\s*\d+[.)]\s+\S|</?[a-z][a-z0-9]*(?:\s[^<>]*)?/?>|"
    r"^\s*[\w-]+(?: [\w-]+)?: [\w-]+(?:, [\w-]+){2,}\W*$|\A(?:\s*[A-Z][\w -]{0,30}: [^\n]+\n){2}|"
    r"\|.*\|.*\||^\s*>\s|^\s*[\[{]\s*[\"']|\[[^\]]+\]\([^)]+\)|(?<![\w*])\*\w[^*\n]*\w\*(?![\w*])",
    re.IGNORECASE | re.MULTILINE,
)

_NUMBERED_THINGS = re.compile(
    r"\b(?:jerseys?|bibs?|(?<!cotton )(?<!snow )(?<!meat)balls?|signs?|shirts?(?! buttons?)|vests?|"
    r"singlets?|players?|runners?|riders?|"
    r"racers?|bus(?:es)?|routes?|(?:number|license|licence|door|name) ?plates?|platforms?|gates?|lanes?|tracks?|"
    r"locomotives?|engines?|jockeys?|dice|die|domino(?:e?s)?|lockers?|channels?|terminals?|piers?|exits?|highways?|"
    r"interstates?|(?:ear|dog|name|price) tags?|collars?|wristbands?|rooms?|apartments?|floors?|uniforms?|kits?|"
    r"scoreboards?|berths?|docks?|courts?|numerals?|digits?|"
    r"labels? reads?|reads|reading|painted|printed|written)\b",
    re.IGNORECASE,
)
"""Things that have a number in the world, wherever it is in the sentence."""
_NUMBERED_WITH_RELATION = re.compile(
    r"\b(?:doors?|houses?|trains?|trams?|clocks?|dials?|pages?|buttons?|keys?|seats?|boats?|sails?|horses?|cards?|"
    r"tickets?|cars?|trucks?|vans?|taxis?|motorcycles?|bikes?|bicycles?|cyclists?|swimmers?|helmets?|caps?|back|chest|"
    r"banners?|stalls?|tables?|pumps?|holes?|flags?|candles?|cakes?|balloons?|volumes?|spines?|books?|stops?|hydrants?|"
    r"meters?|phones?|calendars?|scales?|rulers?|planes?|aircraft|ships?|carriages?|wagons?|mailboxe?s?|sleds?|"
    r"skiers?)\b"
    r".*\b(?:with|bearing|showing|shows|displaying|carrying|wearing|has|having|reads|reading) (?:(?:an?|the|its|his|"
    r"her|"
    r"race|racing|start|large|big|white|black|red|blue|yellow) ){0,3}(?:number |no\. ?|#)?$",
    re.IGNORECASE | re.DOTALL,
)
"""Things that have a number where the words before it say so: "the race car with number 3", but not "car 3"."""

_NUMBERED_IN_ORDER = re.compile(
    r"\b(?:doors?|houses?|seats?|pages?|carriages?|wagons?|stalls?|pumps?|holes?|mailbox(?:es)?|cabins?|booths?) "
    r"(?:that is |which is )?numbered $",
    re.IGNORECASE,
)
"""Things that are numbered in the world from 1, where the caption says so: "the door numbered 5", but not "door 5"."""

_PLACED_IN_NUMBERED = re.compile(
    r"\b(?:in|at|on) (?:seat|stall|booth|bay|box|slot|row|column|aisle|position|bed|cabin|berth) $", re.IGNORECASE
)
"""Numbered places where the described thing is: "the rower in seat 3", but not "seat 3"."""

_DRAWN_NEXT_TO = re.compile(
    r"^,? (?:that is |which is |drawn |placed |shown |written )?(?:next to|beside|above|below|over|near|on top of|"
    r"inside|"
    r"within|at) (?:it|him|her|them)\b",
    re.IGNORECASE,
)
"""Words after a number that is drawn there, whatever the thing is: "the horse with the number 0 next to it"."""

_NUMBERED_BY_MAKERS = re.compile(
    r"\b(?:elevator|lift|calculator|keypad|keyboard|telephone|phone|remote(?: control)?|microwave|number) "
    r"(?:\w+ )?(?:buttons?|keys?)\b|"
    r"\b(?:buttons?|keys?) (?:\w+ ){0,3}(?:of|on|in) (?:the|an?|its) (?:\w+ )?(?:elevator|lift|calculator|keypad|"
    r"keyboard|telephone|phone|remote|microwave|panel)\b|"
    r"\b(?:parking|car park) (?:space|spot|bay|stall|slot|lot)s?\b|\b(?:swimming|starting) (?:block|lane)s?\b|"
    r"\bplaying cards?\b",
    re.IGNORECASE,
)
"""Things that have numbers as they are made, anywhere in the caption, where the words before a number refer to them."""
_REFERS_TO_MADE = re.compile(
    r"\b(?:buttons?|keys?|spaces?|spots?|bays?|stalls?|slots?|lots?|blocks?|lanes?|cards?|ones?) "
    r"(?:(?:that is |which is |is )?(?:marked|labell?ed|numbered|with)(?: the)?(?: (?:number|digit))? )?$",
    re.IGNORECASE,
)

_NO_INDEX = re.compile(
    r"^ (?:of (?:hearts|spades|clubs|diamonds)\b|(?:past|to) \d|"
    r"(?:\w+ )?\w+s (?:below|above|from|behind|ahead|away|over|down|up|left|right|before|after)\b)",
    re.IGNORECASE,
)
"""Words after a number of a playing card, a time, or a distance: "two rows below the top"."""
_PRINTED_ON = re.compile(
    rf" (?:(?!(?:on|in|at|of|the|an?|and|with|near|beside|by|from|to|is)\b)[\w-]+ )?(?:{_NUMBERED_THINGS.pattern})"
    r"|,? (?:\w+ )?(?:on|to|across|onto) (?:the |his |her |its |their |a |an )?(?:[\w-]+'s )?(?:\w+ )?(?:jersey|bib|"
    r"shirt|vest|"
    r"singlet|dial|clock|watch|keypad|keyboard|calendar|ruler|scale|scoreboard|dartboard|"
    r"back|chest|helmet|cap|uniform|kit|side|front|tail|wing|hood|roof|bonnet|door|plate|sail|hull|sleeve|shorts|ball|"
    r"sign|face|cover|spine|banner|flag|label|tag|fin|nose|cab|saddle|cloth)\b",
    re.IGNORECASE,
)
"""Words after a number that tell on what in the world it is written."""
_PEOPLE = re.compile(
    r"(?:man|men|woman|women|boys?|girls?|person|persons|people|child|children|kids?|lady|ladies|guys?|"
    r"bab(?:y|ies)|toddlers?|ones?|figures?|dolls?|clowns?|teddy|bears?|team|crowd|couple|family|bride|"
    r"groom|nurse|chef|pilot|cop|police|adults?|teens?|athletes?|twins?|mascots?|snowman|\w+ers|\w+er|"
    r"\w+ors|\w+or|\w+ists?|\w+man|\w+men|\w+woman)$",
    re.IGNORECASE,
)
_NOT_PEOPLE = re.compile(
    r"(?:flower|paper|ladder|container|trailer|counter|corner|letter|poster|banner|tower|computer|monitor|"
    r"mirror|door|roller|border|(?<!b)locker|drawer|dresser|counter|chandelier|planter|sticker|marker|cover|"
    r"(?<!p)layer|water|(?<!d)river|feather|leather|lever|finger|shoulder|cooler|heater|(?<!s)printer|speaker|folder|"
    r"binder|"
    r"hanger|dispenser|washer|dryer|burner|blender|mixer|toaster|timer|meter|router|scooter|tractor|motor|"
    r"reactor|elevator|floor|color|number|member|saucer|platter|pitcher|tumbler|colander|strainer|cracker|"
    r"burger|pepper|cucumber|ginger|butter|wafer|hair dryer)s?$",
    re.IGNORECASE,
)

_REASONS = {
    "empty": "it has no words",
    "generic": "it would fit any thing; name what can be seen",
    "placeholder": "it repeats a placeholder of the question instead of a caption",
    "markdown": "it has Markdown, markup or a piece of JSON; write plain sentences",
    "meta": "it speaks about the task; begin with the thing itself",
    "hedge": "it says that the thing cannot be told; say what can be seen",
    "mentions_marks": "it mentions the line or mark that shows which thing is meant",
    "mentions_blur": "it mentions the blur or the plain background, which are not part of the photograph",
    "mentions_picture": "it speaks of a picture, photo or crop instead of what can be seen",
    "mentions_numbers": "it mentions a number that is only drawn there",
    "repetition": "it repeats itself",
    "other_language": "it is not in English",
}

_ABBREVIATED = re.compile(r"(?:\b(?:mr|mrs|ms|dr|st|mt|no|vs|ca|approx|jr|sr|inc|e\.g|i\.e)|\b[a-z])$", re.IGNORECASE)
_END_OF_SENTENCE = re.compile(r"[.!?]+[\"'\u201d\u2019)\]]*\s+(?=[\"'\u201c\u2018(\[]*[A-Z0-9])")


def check_caption(rules: CaptionRules, caption: str, *, short: bool = False, highest_number: int | None = None) -> None:
    """Check a caption against all rules.

    Args:
        rules: rules to keep.
        caption: caption, not blank.
        short: require one sentence of at most ``max_short_words`` words.
        highest_number: highest of the numbers, from 0, that were drawn on the view; None: no numbers were drawn.

    Raises:
        InvalidResponseError: its kind is ``refusal``, ``too_short``, ``too_many_words``, ``several_sentences``, or
            one of those in ``_REASONS``.
    """
    if not re.search(r"\w", caption):
        raise _fault("empty")
    if _PLACEHOLDER.search(caption):
        raise _fault("placeholder")
    if _MARKDOWN.search(caption) or JSON_IN_TEXT.search(caption):
        raise _fault("markdown")
    if _GENERIC.search(caption):
        raise _fault("generic")
    check_not_refusal(caption)
    text = _QUOTED.sub("\u2026", re.sub(r"[ \t\u00a0]{2,}|\u00a0", " ", caption.replace("\u2019", "'")))
    if found := _find_leak(text, highest_number):
        raise _fault(*found)
    if rules.language == "english" and not _may_be_english(text):
        raise _fault("other_language")
    _check_length(rules, caption, short)


def _check_length(rules: CaptionRules, caption: str, short: bool) -> None:
    num_words = len(caption.split())
    limit = min(rules.max_words, rules.max_short_words) if short else rules.max_words
    if num_words < rules.min_words:
        raise InvalidResponseError("too_short", f"it has fewer words than {rules.min_words}")
    if num_words > limit:
        raise InvalidResponseError("too_many_words", f"it has {num_words} words, and {limit} is the limit")
    if short and num_sentences(caption) > 1:
        raise InvalidResponseError("several_sentences", "it must be one sentence")


def num_sentences(text: str) -> int:
    """Sentences of a text, at least 1; a full stop after an abbreviation or a single letter ends none."""
    ends = [
        end
        for end in _END_OF_SENTENCE.finditer(text)
        if text[end.start()] != "." or not _ABBREVIATED.search(text[: end.start()])
    ]
    return 1 + len(ends)


def _fault(kind: str, quoted: str | None = None) -> InvalidResponseError:
    return InvalidResponseError(kind, _REASONS[kind] if quoted is None else f'{_REASONS[kind]} ("{quoted.strip()}")')


def _find_leak(text: str, highest_number: int | None) -> tuple[str, str] | None:
    """Words that tell of the task instead of the picture, with the kind of the fault."""
    groups = {"meta": _META, "hedge": (_HEDGES,), "mentions_blur": _BLUR, "mentions_picture": _PICTURE}
    for kind, patterns in groups.items():
        for pattern in patterns:
            for found in pattern.finditer(text):
                # A cover or a screen in the scene may show a close-up, or a blurred image.
                if kind not in {"mentions_blur", "mentions_picture"} or not _SHOWN_ON.search(text[: found.start()]):
                    return kind, found[0]
    candidates = [("mentions_marks", _mark(text)), ("repetition", _repetition(text))]
    if highest_number is not None:
        candidates.append(("mentions_numbers", _number_of_a_mark(text, highest_number)))
        candidates.append(("mentions_marks", _colour_of_a_mark(text) or _contrast_of_marks(text)))
    return next(((kind, words) for kind, words in candidates if words is not None), None)


def _mark(text: str) -> str | None:
    """A relation between the region and a line that is only drawn there."""
    for pattern in _MARKS:
        for found in pattern.finditer(text):
            # Where lines are painted in the world: "the parking space marked with yellow lines".
            after = re.split(r"[,;:.()]", text[found.end() : found.end() + 12])[0]
            around = f"{text[max(0, found.start() - 40) : found.end()]}{after}"
            if not _PAINTED.search(around) or re.search(
                r"\b(?:around|bounding|contour|(?:the|this|that|an?) (?:highlighted|circled|indicated|annotated))\b",
                found[0],
                re.IGNORECASE,
            ):
                return found[0]
    return None


def _number_of_a_mark(text: str, highest: int) -> str | None:
    """A drawn number in any position of a noun: "coin 0", "the one labelled 3", "left of 1", "(2)".

    Numbers on jerseys, bibs, balls, signs and the like are in the world and stay.
    """
    for found in re.finditer(
        r"(?<![\d.:/$€£-])(\d{1,2})(?![\w/%]|[:.,]\d|\s?(?:cm|mm|m|km|kg|px|inch|inches|feet|ft|am|pm|"
        r"percent|years?|to \d|o'clock|minutes?|hours?|seconds?)\b|st\b|nd\b|rd\b|th\b|-)",
        text,
    ):
        before, after = text[: found.start()], text[found.end() :]
        if int(found[1]) > highest or _NO_INDEX.match(after) or re.search(r"\d (?:past|to) $", before):
            continue
        if re.search(r"\b(?:of the|all|these|those) $", before):
            continue  # a count: "the only one of the 4 that is full"
        is_bracketed = before.endswith(("(", "[", "#")) and not re.search(r"\b(?:number|jersey|bib)", before[-20:])
        is_index = re.search(r"\bindex #?$", before, re.IGNORECASE) is not None
        if (
            not is_bracketed
            and not is_index
            and not _DRAWN_NEXT_TO.match(after)
            and not re.search(r"\b(?:at|as) (?:number |no\. |position )?$", before, re.IGNORECASE)
            and (
                _NUMBERED_THINGS.search(before[-45:])
                or _NUMBERED_WITH_RELATION.search(before[-60:])
                or (found[1] != "0" and _NUMBERED_IN_ORDER.search(before[-40:]))
                or (found[1] != "0" and _PLACED_IN_NUMBERED.search(before[-20:]))
                or _PRINTED_ON.match(after)
                or (_NUMBERED_BY_MAKERS.search(text) and _REFERS_TO_MADE.search(before[-45:]))
            )
        ):
            continue
        if re.search(
            r"\b(?:of|the|all|with|and|by|has|have|other|under|behind|above|to|about|around|nearly|roughly|least|some|"
            r"just|"
            r"than|only|its|their) $",
            before,
        ) and re.match(r" (?:\w+ )?[a-z]{2,}s\b(?<!\bis)(?<!\bhas)(?<!\bthis)", after):
            continue  # a count: "the tallest of 4 bottles"
        if re.search(r"(?:[A-Za-z]+ #?|#|\(|\[|^)$", before):
            return f"{' '.join(before.split()[-2:])} {found[0]}".strip()
    named = re.search(
        r"^\W*(?:the )?(?!ground)\w+ zero\b(?! gravity)|\b(?:indices|index (?:number|zero|one|two|three)|number zero|"
        r"(?:object|region|item|candidate|"
        r"coin|one) (?:number )?(?:zero|one|two|three|four)(?=[ ,.]|$))\b(?! of\b)",
        text,
        re.IGNORECASE,
    )
    return None if named is None or _NUMBERED_THINGS.search(text[: named.start()][-30:]) else named[0]


def _colour_of_a_mark(text: str) -> str | None:
    """A thing "in blue": people wear colours, other things that were outlined are called by those of their lines."""
    pattern = (
        r"\b([A-Za-z]+) in (?:the )?(?:yellow|blue|red|orange|green|magenta|cyan|purple|"
        r"pink)(?=\s*(?:[.,;:!?)]|$|and\b(?! (?:gold|white|black|gr[ae]y|silver|brown|yellow|blue|red|orange|green|"
        r"purple|pink)\b)|"
        r"on the\b|at\b|near\b|is\b))"
    )
    for found in re.finditer(pattern, text):
        noun = found[1]
        if noun == "one" and re.fullmatch(r"\W*the ", text[: found.start()], re.IGNORECASE):
            return found[0]
        painted = re.search(
            r"(?:painted|written|printed|dressed|clad|drawn|lit|decorated|colou?red|covered|dyed|wrapped|"
            r"done|upholstered|finished|glowing|shown|bathed|blooming|bloom|parts?|details?|letters?|text|"
            r"lettering|accents?|stripes?|striped|trimmed|edged|lined|patterned|embroidered|carved)$",
            noun,
            re.IGNORECASE,
        )
        if not painted and (_NOT_PEOPLE.search(noun) or not _PEOPLE.search(noun)):
            return found[0]
    return None


def _contrast_of_marks(text: str) -> str | None:
    """Two things told apart by the colours of their outlines, also where one alone could be painted so."""
    found = re.findall(
        rf"\b(?:outlined|circled|encircled|highlighted|boxed) in ({_MARK_COLOUR})\b", text, re.IGNORECASE
    ) or re.findall(rf"\bwith (?:an? |the )?({_MARK_COLOUR}) (?:and \w+ )?(?:lines?|contours?)\b", text, re.IGNORECASE)
    return f"{found[0]} ... {found[1]}" if len({colour.lower() for colour in found}) > 1 else None


def _repetition(text: str) -> str | None:
    """A run of words that comes again and again."""
    words = re.findall(r"[\w']+", text.lower())
    for first in range(len(words) - 3):
        if len(set(words[first : first + 4])) == 1:
            return " ".join(words[first : first + 4])
    for size, most in ((3, 3), (5, 2), (8, 1)):
        runs = Counter(tuple(words[first : first + size]) for first in range(len(words) - size + 1))
        if runs:
            run, number = runs.most_common(1)[0]
            if number > most:
                return " ".join(run)
    return None


def _may_be_english(text: str) -> bool:
    # A sign may be in any script: "a Japanese sign reading ..."; elsewhere such letters are the model's own.
    text = _WRITTEN_IN_ANOTHER_SCRIPT.sub("\u2026", text)
    letters = [character for character in text if character.isalpha()]
    if any(character > "\u024f" for character in letters):
        return False
    words = re.findall(r"[^\W\d_]+", text)
    # The detector takes English with a few loan words ("crème brûlée in a small ramekin") for another language.
    num_english = len(_ENGLISH_WORDS.findall(text))
    if len(words) < _MIN_WORDS_OF_A_LANGUAGE or num_english >= max(2, _MIN_ENGLISH_FRACTION * len(words)):
        return True
    ranked: dict[str, float] = dict(_language_identifier().rank(" ".join(words).lower()))
    best = max(ranked, key=ranked.__getitem__)
    return best == "en" or ranked[best] < _MIN_LANGUAGE_PROBABILITY or ranked["en"] > _MIN_ENGLISH_PROBABILITY


@cache
def _language_identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages(_LANGUAGES)
    return identifier
