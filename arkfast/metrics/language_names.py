"""The languages that are known by name: a code for each, and all that data calls it. This is the one table of them.

A row, or several of one code, is the code that results carry, which is ISO 639-1's where there is one and else ISO 639-3's, then other
codes (ISO 639-2 and 639-3), the English names, the language's own name, and for some what Chinese, Japanese or Korean data calls it. ``_``
stands for a blank inside a name. What data gives is compared by ``key``, so that case, width, blanks and the accents of Latin letters do
not matter.
"""

from __future__ import annotations

import unicodedata

_TABLE = """
aa aar afar qafar
ab abk abkhazian аԥсшәа
af afr afrikaans
ak aka akan
am amh amharic አማርኛ
an arg aragonese aragonés
ar ara arabic العربية arb modern_standard_arabic standard_arabic عربي عربية 阿拉伯语 阿拉伯文
as asm assamese অসমীয়া axomiya
av ava avaric
ay aym aymara ayr
az aze azerbaijani azərbaycan azj azeri azərbaycanca
ba bak bashkir башҡорт
be bel belarusian беларуская беларуская_мова
bg bul bulgarian български
bi bis bislama
bm bam bambara bamanakan
bn ben bangla bengali বাংলা
bo bod tib tibetan བོད_སྐད 藏语
br bre breton brezhoneg
bs bos bosnian bosanski
ca cat catalan català valencian valencià
ce che chechen нохчийн
ch cha chamorro
co cos corsican corsu
cs ces cze czech čeština 捷克语
cv chv chuvash чӑваш_чӗлхи
cy cym wel welsh cymraeg
da dan danish dansk 丹麦语
de deu ger german deutsch 德语 德文 德語 ドイツ語 독일어
dv div divehi ދިވެހިބަސް dhivehi maldivian
dz dzo dzongkha རྫོང_ཁ
ee ewe eʋegbe
el ell gre greek modern_greek ελληνικά
en eng english 英语 英文 英語 영어
eo epo esperanto
es spa spanish español castilian castellano espanol 西班牙语 西班牙文 西班牙語 スペイン語
et est estonian eesti ekk eesti_keel 爱沙尼亚语
eu eus baq basque euskara
fa fas per persian فارسی pes farsi prs dari 波斯语
ff ful fula fulah pulaar fulani
fi fin finnish suomi 芬兰语
fj fij fijian
fo fao faroese føroyskt
fr fra fre french français 法语 法文 法語 フランス語 프랑스어
fy fry western_frisian frysk
ga gle irish gaeilge
gd gla scottish_gaelic gàidhlig gaelic
gl glg galician galego gallego
gn grn guarani avañeẽ
gu guj gujarati ગુજરાતી
gv glv manx gaelg
ha hau hausa
he heb hebrew עברית ivrit
hi hin hindi हिन्दी 印地语
ho hmo hiri_motu
hr hrv croatian hrvatski 克罗地亚语
ht hat haitian_creole haitian kreyòl_ayisyen kreyol
hu hun hungarian magyar 匈牙利语
hy hye arm armenian հայերեն eastern_armenian
hz her herero
ia ina interlingua
id ind indonesian indonesia bahasa_indonesia bahasa 印尼语 印度尼西亚语
ie ile interlingue
ig ibo igbo asụsụ_igbo
ii iii sichuan_yi ꆈꌠꉙ
ik ipk inupiaq
io ido
is isl ice icelandic íslenska
it ita italian italiano 意大利语 意大利文 義大利語 イタリア語
iu iku inuktitut ᐃᓄᒃᑎᑐᑦ ike
ja jpn japanese 日本語 nihongo 日语 日文 日語 일본어
jv jav javanese jawa basa_jawa
ka kat geo georgian ქართული
kg kon kongo
ki kik kikuyu gĩgĩkũyũ
kj kua kuanyama
kk kaz kazakh қазақ_тілі қазақ
kl kal kalaallisut
km khm khmer ខ្មែរ cambodian ភាសាខ្មែរ 高棉语 柬埔寨语
kn kan kannada ಕನ್ನಡ
ko kor korean 한국어 hangul hangugeo 韩语 韩文 韓語 韓国語 朝鲜语 朝鮮語 조선말
kr kau kanuri
ks kas kashmiri کٲشُر
ku kur kurdish kurdî_kurmancî kmr kurmanji northern_kurdish kurmancî
kv kom komi
kw cor cornish kernewek
ky kir kyrgyz kirghiz кыргызча кыргыз
la lat latin latina
lb ltz luxembourgish lëtzebuergesch letzeburgesch
lg lug ganda luganda
li lim limburgish limburgan
ln lin lingala lingála
lo lao ລາວ laotian ພາສາລາວ 老挝语
lt lit lithuanian lietuvių lietuvių_kalba 立陶宛语
lu lub luba_katanga tshiluba
lv lav latvian latviešu lvs
mg mlg malagasy plt
mh mah marshallese
mi mri mao māori maori te_reo
mk mkd mac macedonian македонски 马其顿语
ml mal malayalam മലയാളം
mn mon mongolian монгол khk 蒙古语
mr mar marathi मराठी
ms msa may malay melayu zsm bahasa_melayu bahasa_malaysia malaysian 马来语
mt mlt maltese malti
my mya bur burmese မြန်မာ myanmar မြန်မာဘာသာ 缅甸语
na nau nauru
nd nde north_ndebele
ne nep nepali नेपाली npi
ng ndo ndonga
nl nld dut dutch nederlands flemish vlaams 荷兰语 荷蘭語
nn nno norwegian_nynorsk norsk_nynorsk nynorsk
no nor norwegian norsk nb nob bokmål norwegian_bokmål norsk_bokmål
nr nbl south_ndebele
nv nav navajo diné_bizaad
ny nya nyanja chichewa chewa
oc oci occitan
oj oji ojibwa ojibwe
om orm oromo oromoo gaz
or ori odia oriya ଓଡ଼ିଆ ory
os oss ossetic ossetian ирон
pa pan punjabi panjabi ਪੰਜਾਬੀ pnb
pl pol polish polski 波兰语 波蘭語
ps pus pashto pushto پښتو pashtu
pt por portuguese português 葡萄牙语 葡萄牙文
qu que quechua runasimi
rm roh romansh rumantsch
rn run rundi ikirundi kirundi
ro ron rum romanian română moldavian moldovan 罗马尼亚语
ru rus russian русский 俄语 俄文 俄語 ロシア語 русский_язык
rw kin kinyarwanda ikinyarwanda rwandan
sa san sanskrit संस्कृत_भाषा
sc srd sardinian sardu
sd snd sindhi سنڌي
se sme northern_sami davvisámegiella
sg sag sango sängö
sh hbs serbo_croatian serbocroatian
si sin sinhala සිංහල sinhalese
sk slk slo slovak slovenčina slovenský_jazyk 斯洛伐克语
sl slv slovenian slovenščina slovene 斯洛文尼亚语
sm smo samoan
sn sna shona chishona
so som somali soomaali
sq sqi alb albanian shqip als
sr srp serbian српски srpski
ss ssw swati siswati
st sot southern_sotho sesotho
su sun sundanese basa_sunda
sv swe swedish svenska 瑞典语
sw swa swahili kiswahili swh
ta tam tamil தமிழ்
te tel telugu తెలుగు
tg tgk tajik тоҷикӣ
th tha thai ไทย ภาษาไทย 泰语 泰文
ti tir tigrinya ትግርኛ
tk tuk turkmen türkmen_dili türkmen
tn tsn tswana setswana
to ton tongan lea_fakatonga
tr tur turkish türkçe 土耳其语
ts tso tsonga xitsonga
tt tat tatar татар татарча
tw twi
ty tah tahitian
ug uig uyghur uighur ئۇيغۇرچە 维吾尔语
uk ukr ukrainian українська українська_мова 乌克兰语
ur urd urdu اردو
uz uzb uzbek o_zbek uzn oʻzbek ozbek oʻzbekcha
ve ven venda tshivenḓa
vi vie vietnamese tiếng_việt tiengviet 越南语 越南文
vo vol volapük
wa wln walloon walon
wo wol wolof
xh xho xhosa isixhosa
yi yid yiddish ייִדיש ydd
yo yor yoruba èdè_yorùbá
za zha zhuang vahcuengh
zh zho chi chinese 中文 cmn mandarin mandarin_chinese putonghua guoyu hanyu 汉语 漢語 汉文 漢文 普通话 普通話 国语 國語 华语 華語
zh 简体中文 繁体中文 簡體中文 繁體中文 中国語 북경어 중국어 simplified_chinese traditional_chinese standard_chinese 四川话 东北话
zh 官话 sichuanese
zu zul zulu isizulu
yue cantonese yue_chinese 粵語 粤语 廣東話 广东话 廣州話 广州话 白话 guangdonghua cantonese_chinese
wuu wu_chinese wu 吴语 吳語 上海话 上海話 shanghainese 苏州话 suzhounese
nan min_nan_chinese minnan min_nan southern_min hokkien taiwanese taigi teochew chaoshan minnanese 闽南语 閩南語 闽南话 閩南話
nan 台语 台語 臺語 台湾话 潮汕话 潮州话
hak hakka_chinese hakka 客家话 客家話 客家语 客語 客话
gan gan_chinese 赣语 贛語
hsn xiang_chinese xiang 湘语 湘語
cdo min_dong_chinese mindong eastern_min fuzhounese 闽东语 閩東語 福州话
cjy jinyu_chinese jin 晋语 晉語
mnp min_bei_chinese minbei northern_min 闽北语
lzh literary_chinese classical_chinese 文言 文言文
fil filipino tl tgl tagalog pilipino 菲律宾语
ceb cebuano
haw hawaiian ʻōlelo_hawaiʻi
ast asturian asturianu
arz egyptian_arabic
apc levantine_arabic
ary moroccan_arabic
acm mesopotamian_arabic
afb gulf_arabic
aeb tunisian_arabic
ckb central_kurdish کوردیی_ناوەندی sorani
bho bhojpuri भोजपुरी
mai maithili मैथिली
mag magahi
hne chhattisgarhi
bgc haryanvi हरियाणवी
sat santali ᱥᱟᱱᱛᱟᱲᱤ
mni manipuri মৈতৈলোন্
brx bodo
doi dogri डोगरी
kok konkani कोंकणी
lus mizo lushai
kha khasi
ilo iloko
war waray
min minangkabau
ban balinese
ace acehnese achinese
tpi tok_pisin
sco scots
gsw swiss_german schwiizertüütsch schweizerdeutsch
nds low_german neddersasssch low_saxon
bar bavarian
ksh colognian kölsch
fur friulian furlan
pap papiamento papiamentu
scn sicilian sicilianu
nap neapolitan
lij ligurian ligure
vec venetian veneto
szl silesian ślōnski
hsb upper_sorbian hornjoserbšćina
dsb lower_sorbian dolnoserbšćina
rue rusyn
kab kabyle taqbaylit
nso northern_sotho pedi sesotho_sa_leboa
luo dholuo
mos mossi
kea kabuverdianu
pcm nigerian_pidgin naijíriá_píjin
mfe morisyen kreol_morisien
quc kʼicheʼ kiche
arn mapuche mapudungun
tet tetum
crh crimean_tatar
sah yakut саха_тыла
tyv tuvinian тыва
udm udmurt
bal baluchi بلۆچی
skr saraiki سرائیکی
ain ainu
jje jejueo jeju
awa awadhi
ber berber amazigh tamazight
"""

SLIPS = {
    slip: code
    for code, slips in {
        "zh": "cn zn chn chs cht", "ja": "jp jap jpa", "ko": "kp", "en": "us gb", "es": "sp mx", "cs": "cz", "da": "dk", "el": "gr",
        "uk": "ua", "vi": "vn", "yue": "hk", "id": "in", "he": "iw il", "yi": "ji", "jv": "jw", "ro": "mo", "fa": "ir",
        "km": "kh", "kk": "kz", "my": "mm", "sr": "rs", "sq": "al", "ka": "ge", "be": "by", "de": "at",
    }.items()
    for slip in slips.split()
}  # fmt: skip
"""What people write in place of a code: mostly a country's code, or one that was withdrawn. A slip counts only where nothing stands beside
it, because in ``en-US`` the second part is a region."""

MISTAKEN = {"ch": "zh", "kr": "ko", "tw": "zh"}
"""Codes of other languages (Chamorro, Kanuri, Twi) that are often written for these; only a text can tell which was meant."""

MACRO = dict.fromkeys(("arz", "apc", "ary", "acm", "afb", "aeb"), "ar")
"""Varieties with a code of their own → the language whose spelling rules and whose name in a model's prompt are theirs too."""


def key(text: str) -> str:
    """What two spellings of one name share: case folded, width and accents of Latin letters gone, runs of anything else one blank."""
    folded = unicodedata.normalize("NFD", unicodedata.normalize("NFKC", text).casefold())
    kept, latin = [], False
    for c in folded:
        kind = unicodedata.category(c)[0]
        if kind == "M":
            if not latin:
                kept.append(c)
            continue
        latin = "a" <= c <= "z"
        if c not in "'’ʼʻ":
            kept.append(c if kind in "LN" else " ")
    return unicodedata.normalize("NFC", " ".join("".join(kept).split()))


def _codes() -> dict[str, str]:
    found: dict[str, str] = {}
    for line in _TABLE.strip().split("\n"):
        names = line.split()
        for name in names:
            found[key(name.replace("_", " "))] = names[0]
    return found


CODES = _codes()
"""Keys of codes and names → the code that results carry."""
KNOWN = frozenset(CODES.values())
"""Every code that results carry."""
