"""Patterns of words that tell of the task, the drawn marks or the processing instead of what the picture shows.

They know English and match relations rather than words: a tattoo may be outlined in black ink, a curb may have a
marked section and a picture may hang on a wall, but a chair is not "outlined in yellow". The checks of
``ureca.curation.rules`` apply them.
"""

import re

MARK_COLOUR = (
    r"(?:(?:bright|light|dark|thin|thick|solid|dashed|vivid|neon)[ -]){0,4}"
    r"(?:yellow|blue|red|orange|green|magenta|cyan|purple|violet|pink|lime|teal|turquoise|gold|colou?red)"
)
LINE = (
    r"(?:lines?|contours?|outlines?|borders?|rings?|box(?:es)?|circles?|rectangles?|frames?|loops?|"
    r"strokes?|boundar(?:y|ies)|marks?|markings?|edges?)"
)
DRAWN = (
    r"(?:outlined|circled|encircled|marked|enclosed|surrounded|highlighted|bordered|delineated|"
    r"traced|boxed|ringed|bounded|framed|indicated)"
)
WITH_BORDERS = (
    r" (?:[\w-]+ )?(?:saris?|sarees?|shawls?|scar(?:f|ves)|dress(?:es)?|skirts?|robes?|aprons?|kimonos?|"
    r"(?:table)?cloths?|napkins?|towels?|rugs?|carpets?|mats?|blankets?|quilts?|bedspreads?|curtains?|"
    r"handkerchie(?:f|ves)|"
    r"pillowcases?|plates?|platters?|dish(?:es)?|bowls?|saucers?|trays?|signs?|posters?|cards?|stamps?|envelopes?|"
    r"pages?|labels?|"
    r"certificates?|flags?|banners?|pennants?|flower ?beds?|lawns?|paths?)\b"
)
"""Textiles, dishes, printed things and flower beds, which have borders of their own ("a red-bordered rug")."""
NOT_IN_BOXES = (
    r"(?:person|people|man|woman|men|women|player|rider|cyclist|pedestrian|runner|driver|worker|figure|car|truck|bus|"
    r"van|taxi|vehicle|motorcycle|bicycle|bike|scooter|train|boat|ship|plane|airplane|tree|bush|building|house|tower|"
    r"window|"
    r"door|bench|table|chair|sofa|couch|bed|horse|cow|elephant|giraffe|zebra|sheep|lamp ?post|street ?light|object)"
)
"""Things that no coloured box, circle or rectangle of the world encloses."""
# What really has coloured lines around or on it.
PAINTED = re.compile(
    r"\b(?:parking|lane|lanes|road|roadway|street|court|field|pitch|runway|crosswalk|crossing|curb|"
    r"pavement|asphalt|zone|"
    r"track|playground|letters?|lettering|logo|text|sign|plate|tiles?|stripes?|painted)\b",
    re.IGNORECASE,
)

MARKS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        # "outlined in blue", "surrounded by a thin yellow line"; not "surrounded by green grass"
        rf"\b{DRAWN} (?:\w+ly )?(?:in|by|with|within|inside|using) (?:(?:a|an|the|its) )?(?:(?:thin|thick|"
        rf"bold|faint|narrow) ){{0,3}}{MARK_COLOUR}"
        rf"(?: (?:thin |thick |solid |dashed )*{LINE}\b|(?=\s*(?:[.,;:!?)]|$|(?:and|or)\b(?! (?:\w+ )?(?:yellow|"
        rf"blue|red|orange|green|purple|pink|white|black|gold) \w+)|is\b|"
        rf"on (?!all\b|both\b|each\b|every\b)|in\b|at\b|near\b|from\b|stands?\b|that\b|which\b)))",
        # "highlighted in yellow"; not "outlined in blue ink"
        rf"\b(?:outlined|circled|encircled|highlighted|delineated|boxed|marked) (?:\w+ly )?(?:in|by|"
        rf"with) (?:a |an |the )?{MARK_COLOUR}\b"
        rf"(?=\s*(?:[.,;:!?)]|$)|\s+(?:\w+ )?{LINE}\b(?! (?:of|on) the (?:road|street|court))|\s+(?:and|or|on|in|at|"
        rf"near|by|for|"
        r"with|from|to|is|are|has|have|that|which|stands?|sits?|lies|hangs?|next|behind|above|below|beside|against|"
        r"left|right|"
        r"inside)\b)",
        rf"\b{MARK_COLOUR}-(?:outlined|circled|bordered(?!{WITH_BORDERS})|marked|boxed|highlighted)\b|"
        rf"\b{MARK_COLOUR} outlines?\b|\b{MARK_COLOUR}-(?:lined|edged|framed|contoured) (?:object|region|area|item|"
        rf"thing|part|"
        r"section|portion|subject)\b",
        # "with a blue ring around it"
        rf"\b{MARK_COLOUR} (?:\w+ )?(?:{LINE}(?<!s)|boxes|contours|outlines|lines) (?:drawn |that goes |going |is )?"
        r"(?:around|surrounding|encircling|enclosing|outlining|marking|highlighting)\b"
        r"(?! (?:each|every|(?:(?:the|its|their|his|her|an?) )?(?:[\w-]+'s )?(?:left |right )?(?:edges?|rims?|hem|"
        r"neck|collar|"
        r"cuffs?|sleeves?|brim|base|lip|top|heads?|eyes?|wrists?|waists?|ankles?|fingers?|arms?|legs?|tails?|mouth|"
        r"nose|"
        r"bottom|foot|stem|trunk|throat|chest|beak)\b))",
        rf"\b{MARK_COLOUR} (?:\w+ )?{LINE} (?:drawn |that goes |going )?(?:around|surrounding|encircling) (?:it|"
        r"them|him|her(?! (?!is\b|and\b|in\b|on\b|at\b|as\b)[a-z])|"
        r"the (?:object|region|item|thing|area))\b",
        r"\b(?:indicating|marking|highlighting|denoting|delimiting) (?:the|this|that) (?:\w+ )?(?:region|"
        r"area of interest|object|target)\b",
        rf"\bthe {MARK_COLOUR} {LINE} (?:surrounds?|encloses?|outlines?|encircles?|indicates?|highlights?|traces?|"
        rf"delineates?|borders|"
        r"runs around|goes around|"
        rf"marks? an?)\b",
        rf"\b(?:inside|within) (?:a|an|the) {MARK_COLOUR} lines?\b",
        r"\b(?:item|object|region|area|thing|part|portion) (?:highlighted|outlined|circled|indicated|shown|selected|"
        r"depicted)(?=\s*(?:[.,;:)]|$|is\b|are\b|has\b|here\b|contains?\b|by\b|in\b|with\b))"
        r"(?! (?:in|by|with) (?:black|white|brown|chalk|ink|paint|profile|relief|bloom|flight))",
        # No box of the world is magenta; a red one may be.
        rf"\b(?:in|inside|within|by|with) (?:a|an|the) (?:\w+ )?(?:magenta|cyan) {LINE}\b",
        # "yellow highlighting along its boundary"; not "yellow highlights in her hair"
        rf"\b{MARK_COLOUR} (?:highlight(?:s|ing)?|outlining|tracing|contouring) (?:along|around|on|over|at) (?:the|"
        r"its|their|his|her) (?:\w+ )?(?:boundar(?:y|ies)|border|outline|contour|perimeter|edges?)\b",
        # "the person inside the blue box"; not "a toy inside the blue box"
        rf"(?<!toy )(?<!model )(?<!miniature )(?<!plastic )\b{NOT_IN_BOXES}s? (?:(?:(?:that|which|who) )?"
        r"(?:is|are) )?(?:(?:standing|sitting|parked|shown|seen|located|visible|alone) )?"
        rf"(?:inside|within|in|enclosed (?:in|by|within)) (?:a|an|the) {MARK_COLOUR} "
        r"(?:box|circle|square|rectangle|ring|oval|ellipse)\b(?!-| (?:seat|of|office)\b)",
        # "inside the yellow outline"
        rf"\b(?:in|inside|within|by|with) (?:a|an|the) {MARK_COLOUR} (?:contours?|outlines?|boundary|"
        rf"bounding box|polygon|mask|highlight)\b",
        rf"\b(?:inside|within) (?:a|an|the) {MARK_COLOUR} marking\b",
        rf"\b{MARK_COLOUR} (?:contours?|bounding box(?:es)?|polygons? around|outlining|highlighting)\b",
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
        rf"{MARK_COLOUR}) ){{0,4}}(?:line|outline|contour|boundary|border|ring|box|highlight|annotation)s?\b(?! of\b)",
        rf"^\W*(?:the|an?) (?:area|region|object|part|portion|section|item|thing|"
        rf"shape) in {MARK_COLOUR}(?=\s*(?:[.,;:]|$)| (?:is|are|"
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

BLUR = tuple(
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

PICTURE = tuple(
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

WORN_MASK = (
    r"(?=.{0,300}\b(?:carved|wood(?:en)?|surgical|fac(?:e|ial)|eyes?|eye ?holes?|mouth|nose|chin|beard|ears?|straps?|"
    r"elastic|worn|wears?|"
    r"wearing|ceremonial|tribal|carnival|costume|theatre|theater|diving|snorkel|gas|ski|welding|venetian|feathers?|"
    r"raffia|paint(?:ed)?|"
    r"papier|fabric|cloth|rubber|latex|plastic|cotton|hangs?|hanging|nail)\b)"
)
"""Words of a caption whose mask is one that people wear or hang on a wall."""

SHOWN_ON = re.compile(
    r"\b(?:covers?|posters?|screens?|displays?|viewfinders?|monitors?|televisions?|tv|tablets?|phones?|billboards?|"
    r"magazines?|"
    r"pages?|paintings?|prints?|cards?|canvas(?:es)?|banners?|murals?) (?:(?:that|which) )?(?:with|of|shows?|showing|"
    r"displays?|"
    r"displaying|depicts?|depicting|featuring|bearing) (?:an? |the )?(?:[\w-]+ )?$",
    re.IGNORECASE,
)
"""Words before those of a picture that is itself in the scene."""

META = tuple(
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
        rf"masked area|mask(?!{WORN_MASK})) (?:shows?|depicts?|contains?|displays?|features?|includes?|represents?|"
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

HEDGES = re.compile(
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

PLACEHOLDER = re.compile(
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

GENERIC = re.compile(
    r"^\W*(?:(?:an?|the|this|that|some|one|single|small|large|big|main|certain|visible|other|part|piece|portion|"
    r"section|"
    r"view|bit|of) )*"
    r"(?:objects?|items?|things?|something|regions?|areas?|parts?|segments?|elements?|stuff|"
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

MARKDOWN = re.compile(
    r"\*\*|__\w|`|^\s*#{1,6}\s|^\s*[-*\u2022+]\s+\S.*$|^\s*\d+[.)]\s+\S|</?[a-z][a-z0-9]*(?:\s[^<>]*)?/?>|"
    r"^\s*[\w-]+(?: [\w-]+)?: [\w-]+(?:, [\w-]+){2,}\W*$|\A(?:\s*[A-Z][\w -]{0,30}: [^\n]+\n){2}|"
    r"\|.*\|.*\||^\s*>\s|^\s*[\[{]\s*[\"']|\[[^\]]+\]\([^)]+\)|(?<![\w*])\*\w[^*\n]*\w\*(?![\w*])",
    re.IGNORECASE | re.MULTILINE,
)

NUMBERED_THINGS = re.compile(
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
NUMBERED_WITH_RELATION = re.compile(
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

NUMBERED_IN_ORDER = re.compile(
    r"\b(?:doors?|houses?|seats?|pages?|carriages?|wagons?|stalls?|pumps?|holes?|mailbox(?:es)?|cabins?|booths?) "
    r"(?:that is |which is )?numbered $",
    re.IGNORECASE,
)
"""Things that are numbered in the world from 1, where the caption says so: "the door numbered 5", but not "door 5"."""

PLACED_IN_NUMBERED = re.compile(
    r"\b(?:in|at|on) (?:seat|stall|booth|bay|box|slot|row|column|aisle|position|bed|cabin|berth) $", re.IGNORECASE
)
"""Numbered places where the described thing is: "the rower in seat 3", but not "seat 3"."""

DRAWN_NEXT_TO = re.compile(
    r"^,? (?:that is |which is |drawn |placed |shown |written )?(?:next to|beside|above|below|over|near|on top of|"
    r"inside|"
    r"within|at) (?:it|him|her|them)\b",
    re.IGNORECASE,
)
"""Words after a number that is drawn there, whatever the thing is: "the horse with the number 0 next to it"."""

NUMBERED_BY_MAKERS = re.compile(
    r"\b(?:elevator|lift|calculator|keypad|keyboard|telephone|phone|remote(?: control)?|microwave|number) "
    r"(?:\w+ )?(?:buttons?|keys?)\b|"
    r"\b(?:buttons?|keys?) (?:\w+ ){0,3}(?:of|on|in) (?:the|an?|its) (?:\w+ )?(?:elevator|lift|calculator|keypad|"
    r"keyboard|telephone|phone|remote|microwave|panel)\b|"
    r"\b(?:parking|car park) (?:space|spot|bay|stall|slot|lot)s?\b|\b(?:swimming|starting) (?:block|lane)s?\b|"
    r"\bplaying cards?\b",
    re.IGNORECASE,
)
"""Things that have numbers as they are made, anywhere in the caption, where the words before a number refer to them."""
REFERS_TO_MADE = re.compile(
    r"\b(?:buttons?|keys?|spaces?|spots?|bays?|stalls?|slots?|lots?|blocks?|lanes?|cards?|ones?) "
    r"(?:(?:that is |which is |is )?(?:marked|labell?ed|numbered|with)(?: the)?(?: (?:number|digit))? )?$",
    re.IGNORECASE,
)

NO_INDEX = re.compile(
    r"^ (?:of (?:hearts|spades|clubs|diamonds)\b|(?:past|to) \d|"
    r"(?:\w+ )?\w+s (?:below|above|from|behind|ahead|away|over|down|up|left|right|before|after)\b)",
    re.IGNORECASE,
)
"""Words after a number of a playing card, a time, or a distance: "two rows below the top"."""
PRINTED_ON = re.compile(
    rf" (?:(?!(?:on|in|at|of|the|an?|and|with|near|beside|by|from|to|is)\b)[\w-]+ )?(?:{NUMBERED_THINGS.pattern})"
    r"|,? (?:\w+ )?(?:on|to|across|onto) (?:the |his |her |its |their |a |an )?(?:[\w-]+'s )?(?:\w+ )?(?:jersey|bib|"
    r"shirt|vest|"
    r"singlet|dial|clock|watch|keypad|keyboard|calendar|ruler|scale|scoreboard|dartboard|"
    r"back|chest|helmet|cap|uniform|kit|side|front|tail|wing|hood|roof|bonnet|door|plate|sail|hull|sleeve|shorts|ball|"
    r"sign|face|cover|spine|banner|flag|label|tag|fin|nose|cab|saddle|cloth)\b",
    re.IGNORECASE,
)
"""Words after a number that tell on what in the world it is written."""
PEOPLE = re.compile(
    r"(?:man|men|woman|women|boys?|girls?|person|persons|people|child|children|kids?|lady|ladies|guys?|"
    r"bab(?:y|ies)|toddlers?|ones?|figures?|dolls?|clowns?|teddy|bears?|team|crowd|couple|family|bride|"
    r"groom|nurse|chef|pilot|cop|police|adults?|teens?|athletes?|twins?|mascots?|snowman|\w+ers|\w+er|"
    r"\w+ors|\w+or|\w+ists?|\w+man|\w+men|\w+woman)$",
    re.IGNORECASE,
)
NOT_PEOPLE = re.compile(
    r"(?:flower|paper|ladder|container|trailer|counter|corner|letter|poster|banner|tower|computer|monitor|"
    r"mirror|door|roller|border|(?<!b)locker|drawer|dresser|counter|chandelier|planter|sticker|marker|cover|"
    r"(?<!p)layer|water|(?<!d)river|feather|leather|lever|finger|shoulder|cooler|heater|(?<!s)printer|speaker|folder|"
    r"binder|"
    r"hanger|dispenser|washer|dryer|burner|blender|mixer|toaster|timer|meter|router|scooter|tractor|motor|"
    r"reactor|elevator|floor|color|number|member|saucer|platter|pitcher|tumbler|colander|strainer|cracker|"
    r"burger|pepper|cucumber|ginger|butter|wafer|hair dryer)s?$",
    re.IGNORECASE,
)
