"""The demo model's whole knowledge of the world, written as tables."""

from __future__ import annotations

# country|capital|country in Chinese|capital in Chinese
_CAPITALS = """France|Paris|法国|巴黎
Germany|Berlin|德国|柏林
Italy|Rome|意大利|罗马
Spain|Madrid|西班牙|马德里
Portugal|Lisbon|葡萄牙|里斯本
the United Kingdom|London|英国|伦敦
Ireland|Dublin|爱尔兰|都柏林
the Netherlands|Amsterdam|荷兰|阿姆斯特丹
Belgium|Brussels|比利时|布鲁塞尔
Luxembourg|Luxembourg City|卢森堡|卢森堡市
Switzerland|Bern|瑞士|伯尔尼
Austria|Vienna|奥地利|维也纳
Poland|Warsaw|波兰|华沙
the Czech Republic|Prague|捷克|布拉格
Slovakia|Bratislava|斯洛伐克|布拉迪斯拉发
Hungary|Budapest|匈牙利|布达佩斯
Romania|Bucharest|罗马尼亚|布加勒斯特
Bulgaria|Sofia|保加利亚|索非亚
Greece|Athens|希腊|雅典
Turkey|Ankara|土耳其|安卡拉
Serbia|Belgrade|塞尔维亚|贝尔格莱德
Croatia|Zagreb|克罗地亚|萨格勒布
Slovenia|Ljubljana|斯洛文尼亚|卢布尔雅那
Albania|Tirana|阿尔巴尼亚|地拉那
Ukraine|Kyiv|乌克兰|基辅
Russia|Moscow|俄罗斯|莫斯科
Estonia|Tallinn|爱沙尼亚|塔林
Latvia|Riga|拉脱维亚|里加
Lithuania|Vilnius|立陶宛|维尔纽斯
Finland|Helsinki|芬兰|赫尔辛基
Sweden|Stockholm|瑞典|斯德哥尔摩
Norway|Oslo|挪威|奥斯陆
Denmark|Copenhagen|丹麦|哥本哈根
Iceland|Reykjavik|冰岛|雷克雅未克
the United States|Washington, D.C.|美国|华盛顿
Canada|Ottawa|加拿大|渥太华
Mexico|Mexico City|墨西哥|墨西哥城
Cuba|Havana|古巴|哈瓦那
Jamaica|Kingston|牙买加|金斯敦
Panama|Panama City|巴拿马|巴拿马城
Brazil|Brasilia|巴西|巴西利亚
Argentina|Buenos Aires|阿根廷|布宜诺斯艾利斯
Chile|Santiago|智利|圣地亚哥
Peru|Lima|秘鲁|利马
Colombia|Bogota|哥伦比亚|波哥大
Venezuela|Caracas|委内瑞拉|加拉加斯
Ecuador|Quito|厄瓜多尔|基多
Uruguay|Montevideo|乌拉圭|蒙得维的亚
Paraguay|Asuncion|巴拉圭|亚松森
China|Beijing|中国|北京
Japan|Tokyo|日本|东京
South Korea|Seoul|韩国|首尔
North Korea|Pyongyang|朝鲜|平壤
Mongolia|Ulaanbaatar|蒙古|乌兰巴托
India|New Delhi|印度|新德里
Pakistan|Islamabad|巴基斯坦|伊斯兰堡
Bangladesh|Dhaka|孟加拉国|达卡
Nepal|Kathmandu|尼泊尔|加德满都
Thailand|Bangkok|泰国|曼谷
Vietnam|Hanoi|越南|河内
Cambodia|Phnom Penh|柬埔寨|金边
Laos|Vientiane|老挝|万象
Malaysia|Kuala Lumpur|马来西亚|吉隆坡
Singapore|Singapore|新加坡|新加坡
Indonesia|Jakarta|印度尼西亚|雅加达
the Philippines|Manila|菲律宾|马尼拉
Australia|Canberra|澳大利亚|堪培拉
New Zealand|Wellington|新西兰|惠灵顿
Iran|Tehran|伊朗|德黑兰
Iraq|Baghdad|伊拉克|巴格达
Israel|Jerusalem|以色列|耶路撒冷
Jordan|Amman|约旦|安曼
Lebanon|Beirut|黎巴嫩|贝鲁特
Syria|Damascus|叙利亚|大马士革
Saudi Arabia|Riyadh|沙特阿拉伯|利雅得
Qatar|Doha|卡塔尔|多哈
Afghanistan|Kabul|阿富汗|喀布尔
Egypt|Cairo|埃及|开罗
Morocco|Rabat|摩洛哥|拉巴特
Algeria|Algiers|阿尔及利亚|阿尔及尔
Tunisia|Tunis|突尼斯|突尼斯市
Libya|Tripoli|利比亚|的黎波里
Sudan|Khartoum|苏丹|喀土穆
Ethiopia|Addis Ababa|埃塞俄比亚|亚的斯亚贝巴
Kenya|Nairobi|肯尼亚|内罗毕
Uganda|Kampala|乌干达|坎帕拉
Rwanda|Kigali|卢旺达|基加利
Nigeria|Abuja|尼日利亚|阿布贾
Ghana|Accra|加纳|阿克拉
Senegal|Dakar|塞内加尔|达喀尔
South Africa|Pretoria|南非|比勒陀利亚
Zimbabwe|Harare|津巴布韦|哈拉雷
Zambia|Lusaka|赞比亚|卢萨卡
Angola|Luanda|安哥拉|罗安达
Madagascar|Antananarivo|马达加斯加|塔那那利佛"""
CAPITALS = [tuple(line.split("|")) for line in _CAPITALS.splitlines()]
CITIES = [row[1] for row in CAPITALS if "," not in row[1]]
ZH_CITIES = [row[3] for row in CAPITALS]

ELEMENTS = [
    tuple(e.split("|"))
    for e in (
        "hydrogen|H|氢 helium|He|氦 carbon|C|碳 nitrogen|N|氮 oxygen|O|氧 sodium|Na|钠 magnesium|Mg|镁 aluminum|Al|铝 "
        "silicon|Si|硅 sulfur|S|硫 chlorine|Cl|氯 potassium|K|钾 calcium|Ca|钙 iron|Fe|铁 nickel|Ni|镍 copper|Cu|铜 "
        "zinc|Zn|锌 silver|Ag|银 tin|Sn|锡 iodine|I|碘 gold|Au|金 mercury|Hg|汞 lead|Pb|铅 uranium|U|铀 neon|Ne|氖"
    ).split()
]
OPPOSITES = [
    tuple(e.split("|"))
    for e in (
        "hot|cold big|small up|down left|right black|white day|night old|young fast|slow high|low open|closed "
        "full|empty wet|dry hard|soft light|dark rich|poor happy|sad early|late long|short strong|weak true|false "
        "first|last inside|outside love|hate win|lose buy|sell push|pull north|south east|west near|far thick|thin"
    ).split()
]
ZH_OPPOSITES = [tuple(e.split("|")) for e in "大|小 高|低 长|短 热|冷 黑|白 快|慢 上|下 左|右 多|少 新|旧".split()]
LEGS = [
    tuple(e.split("|"))
    for e in (
        "dog|4|狗 cat|4|猫 horse|4|马 cow|4|牛 sheep|4|羊 spider|8|蜘蛛 ant|6|蚂蚁 bee|6|蜜蜂 bird|2|鸟 chicken|2|鸡 "
        "snake|0|蛇 fish|0|鱼 frog|4|青蛙 crab|10|螃蟹 human|2|人 elephant|4|大象"
    ).split()
]
DAYS = [
    tuple(e.split("|"))
    for e in (
        "Monday|星期一 Tuesday|星期二 Wednesday|星期三 Thursday|星期四 Friday|星期五 Saturday|星期六 Sunday|星期日"
    ).split()
]
MONTHS = [
    tuple(e.split("|"))
    for e in (
        "January|一月|31 February|二月|28 March|三月|31 April|四月|30 May|五月|31 June|六月|30 July|七月|31 "
        "August|八月|31 September|九月|30 October|十月|31 November|十一月|30 December|十二月|31"
    ).split()
]
PLANETS = [
    tuple(e.split("|"))
    for e in (
        "Mercury|水星 Venus|金星 Earth|地球 Mars|火星 Jupiter|木星 Saturn|土星 Uranus|天王星 Neptune|海王星"
    ).split()
]
ORDINALS = "first second third fourth fifth sixth seventh eighth".split()
ZH_ORDINALS = "一 二 三 四 五 六 七 八".split()

# questions (| between phrasings) -> answer
_FACTS = """How many days are in a week?|How many days does a week have?|number of days in a week=A week has 7 days.
How many months are in a year?|How many months does a year have?|number of months in a year=A year has 12 months.
How many hours are in a day?|How many hours does a day have?|number of hours in a day=A day has 24 hours.
How many minutes are in an hour?|How many minutes does an hour have?=An hour has 60 minutes.
How many seconds are in a minute?|How many seconds does a minute have?=A minute has 60 seconds.
How many days are in a year?|How many days does a year have?=A year has 365 days.
How many sides does a triangle have?|How many sides are in a triangle?=A triangle has 3 sides.
How many sides does a square have?|How many sides are in a square?=A square has 4 sides.
How many sides does a hexagon have?|How many sides are in a hexagon?=A hexagon has 6 sides.
What color is the sky?|What is the color of the sky?|color of the sky\
=The sky is blue.
What color is grass?|What is the color of grass?|color of grass=Grass is green.
What color is snow?|What is the color of snow?|color of snow=Snow is white.
What color is a ripe banana?|What is the color of a banana?|What color are bananas?=A ripe banana is yellow.
What color is blood?|What is the color of blood?=Blood is red.
At what temperature does water boil?|What is the boiling point of water?=Water boils at 100 degrees Celsius.
At what temperature does water freeze?|What is the freezing point of water?=Water freezes at 0 degrees Celsius.
What is the largest planet?|Which planet is the biggest?|What is the biggest planet?\
=The largest planet is Jupiter.
What is the smallest planet?|Which planet is the smallest?=The smallest planet is Mercury.
What is the largest ocean?|Which ocean is the biggest?|What is the biggest ocean?\
=The largest ocean is the Pacific Ocean.
What is the highest mountain?|Which mountain is the tallest?|What is the tallest mountain?\
=The highest mountain is Mount Everest.
What is the largest animal?|Which animal is the biggest?|What is the biggest animal?\
=The largest animal is the blue whale.
What is the fastest land animal?|Which land animal is the fastest?=The fastest land animal is the cheetah.
What do bees make?|What is made by bees?=Bees make honey.
What do cows eat?|What does a cow eat?=Cows eat grass.
How many letters are in the English alphabet?|How many letters does the alphabet have?\
=The English alphabet has 26 letters.
How many continents are there?|What is the number of continents?=There are 7 continents.
What is the chemical formula of water?|What is water made of?|formula of water=Water is H2O.
What is frozen water called?|What do we call frozen water?=Frozen water is called ice.
What star is closest to Earth?|Which star is nearest to Earth?=The star closest to Earth is the Sun.
How many wheels does a bicycle have?|How many wheels are on a bicycle?=A bicycle has 2 wheels.
How many wheels does a car have?|How many wheels are on a car?=A car has 4 wheels.
How many fingers does a hand have?|How many fingers are on one hand?=A hand has 5 fingers."""
FACTS = [(q.split("|"), a) for q, a in (line.split("=") for line in _FACTS.splitlines())]
_ZH_FACTS = """一周有几天？|一个星期有多少天？=一周有7天。
一年有几个月？|一年有多少个月？=一年有12个月。
一天有多少小时？|一天有几个小时？=一天有24小时。
一小时有多少分钟？|一个小时有几分钟？=一小时有60分钟。
天空是什么颜色？|天空的颜色是什么？=天空是蓝色的。
草是什么颜色？|草的颜色是什么？=草是绿色的。
雪是什么颜色？|雪的颜色是什么？=雪是白色的。
水在多少度沸腾？|水的沸点是多少？=水在100摄氏度沸腾。
最大的行星是什么？|哪颗行星最大？=最大的行星是木星。
最大的海洋是什么？|哪个海洋最大？=最大的海洋是太平洋。
最高的山是什么？|哪座山最高？=最高的山是珠穆朗玛峰。
三角形有几条边？|三角形有多少条边？=三角形有3条边。"""
ZH_FACTS = [(q.split("|"), a) for q, a in (line.split("=") for line in _ZH_FACTS.splitlines())]

# singular, plural, abbreviation, factor, unit, its plural, its abbreviation, Chinese of both, largest count asked
UNITS = [
    ("kilometer", "kilometers", "km", 1000, "meter", "meters", "m", "千米", "米", 99),
    ("meter", "meters", "m", 100, "centimeter", "centimeters", "cm", "米", "厘米", 99),
    ("centimeter", "centimeters", "cm", 10, "millimeter", "millimeters", "mm", "厘米", "毫米", 99),
    ("kilogram", "kilograms", "kg", 1000, "gram", "grams", "g", "千克", "克", 99),
    ("liter", "liters", "l", 1000, "milliliter", "milliliters", "ml", "升", "毫升", 99),
    ("ton", "tons", "t", 1000, "kilogram", "kilograms", "kg", "吨", "千克", 99),
    ("euro", "euros", "EUR", 100, "cent", "cents", "ct", "欧元", "欧分", 99),
    ("hour", "hours", "h", 60, "minute", "minutes", "min", "小时", "分钟", 12),
    ("minute", "minutes", "min", 60, "second", "seconds", "s", "分钟", "秒", 12),
    ("day", "days", "d", 24, "hour", "hours", "h", "天", "小时", 10),
    ("week", "weeks", "wk", 7, "day", "days", "d", "周", "天", 12),
    ("year", "years", "yr", 12, "month", "months", "mo", "年", "个月", 10),
    ("foot", "feet", "ft", 12, "inch", "inches", "in", "英尺", "英寸", 10),
]
