"""The style of every page: one column at 420 pixels, a light and a dark set of colours, nothing fetched."""

STYLE = """
:root { color-scheme: light dark; --bg: #fff; --panel: #f6f8fa; --fg: #1b1f24; --muted: #59636e; --line: #d1d9e0;
  --grid: #e6eaef; --good: #116329; --bad: #b3202c; --open: #7d4e00; --accent: #0757ba; --c0: #0757ba; --c1: #b3202c;
  --c2: #116329; --c3: #8a5a00; --c4: #6f3fc4; --c5: #59636e; --band: #59636e }
@media (prefers-color-scheme: dark) {
  :root { --bg: #0d1117; --panel: #161b22; --fg: #e6edf3; --muted: #9aa5b1; --line: #363d46; --grid: #262c34;
  --good: #56d364; --bad: #ff8a82; --open: #e3b341; --accent: #79b8ff; --c0: #79b8ff; --c1: #ff8a82; --c2: #56d364;
  --c3: #e3b341; --c4: #c9a5ff; --c5: #9aa5b1; --band: #9aa5b1 } }
* { box-sizing: border-box }
html { -webkit-text-size-adjust: 100% }
body { font: 16px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; color: var(--fg); background: var(--bg);
  max-width: 1120px; margin: 0 auto; padding: 20px 16px 60px; overflow-wrap: anywhere }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .5rem }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .4rem; padding-top: .6rem; border-top: 1px solid var(--line) }
h3 { font-size: 1rem; margin: 1.4rem 0 .5rem } h4 { font-size: .92rem; margin: 0 0 .5rem }
p { margin: .4rem 0 } .note, figcaption { color: var(--muted); font-size: .88rem; max-width: 78ch }
a { color: var(--accent) } :focus-visible { outline: 3px solid var(--accent); outline-offset: 2px }
.unseen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap }
.verdict { border-left: 5px solid var(--open); background: var(--panel); border-radius: 0 8px 8px 0;
  padding: .7rem 1rem; margin: 1rem 0 }
.verdict.good { border-color: var(--good) } .verdict.bad { border-color: var(--bad) }
.verdict p { font-size: 1.15rem; font-weight: 600; line-height: 1.4; margin: 0; max-width: 70ch }
.verdict ul { margin: .5rem 0 0; padding-left: 1.1rem; max-width: 78ch } .verdict li { margin: .15rem 0 }
.facts { display: flex; flex-wrap: wrap; gap: .15rem 1.4rem; margin: .8rem 0; font-size: .88rem }
.facts div { display: flex; gap: .4rem } .facts dt { color: var(--muted); white-space: nowrap } .facts dd { margin: 0 }
nav ul { display: flex; flex-wrap: wrap; gap: .2rem 1rem; list-style: none; padding: 0; margin: .8rem 0 0 }
nav a { display: inline-block; padding: .2rem 0; font-size: .92rem }
.scroll { overflow-x: auto; margin: .2rem 0 .6rem; max-width: 100% }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem }
.title { font-size: .9rem; font-weight: 600; margin: 1rem 0 0 }
th, td { padding: .3rem .7rem; text-align: right; white-space: nowrap; overflow-wrap: normal }
th:first-child { text-align: left; padding-left: 0 } tbody th { font-weight: 400 }
thead th { color: var(--muted); font-weight: 600; white-space: normal;
  border-bottom: 2px solid var(--line); vertical-align: bottom }
tbody tr + tr > * { border-top: 1px solid var(--grid) } small { color: var(--muted); font-size: .85em }
figure { margin: 0; min-width: 0 } figcaption { margin-top: .25rem }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(320px, 100%), 1fr)); gap: 18px 22px;
  margin: .8rem 0 }
.multiples { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(230px, 100%), 1fr)); gap: 14px 18px }
.plots > figure, .multiples > figure { max-width: 520px }
@media (max-width: 560px) { .multiples { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 10px } }
svg { display: block; width: 100%; height: auto } svg text { fill: var(--muted); font-size: 11px }
.multiples svg text { font-size: 12px } .axis { stroke: var(--line) } .gridline { stroke: var(--grid) }
.band { fill: var(--band); opacity: .1 } .band.odd { opacity: .2 }
.line { fill: none; stroke-width: 2; stroke-linejoin: round } .dotted { stroke-dasharray: 2 4; stroke-width: 1.6 }
.area { opacity: .35; stroke-width: 1.5 }
.k0 { --k: var(--c0) } .k1 { --k: var(--c1) } .k2 { --k: var(--c2) } .k3 { --k: var(--c3) } .k4 { --k: var(--c4) }
.k5 { --k: var(--c5) } .line { stroke: var(--k) } .area { fill: var(--k); stroke: var(--k) } .dot { fill: var(--k) }
.key { white-space: nowrap; margin-right: .6rem }
.key::before { content: ""; display: inline-block; width: .85em; height: .85em; border-radius: 2px;
  background: var(--k); margin-right: .35em; vertical-align: -.08em }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(300px, 100%), 1fr)); gap: 14px;
  align-items: start; margin: .6rem 0 }
.card { border: 1px solid var(--line); border-top: 4px solid var(--line); border-radius: 8px; padding: 10px 12px;
  background: var(--panel); font-size: .9rem; min-width: 0 }
.card.good { border-top-color: var(--good) } .card.bad { border-top-color: var(--bad) }
.card.open { border-top-color: var(--open) }
img.photo, img.pixels { display: block; max-width: 100%; height: auto; border-radius: 4px }
img.pixels { image-rendering: pixelated }
.query img { max-height: 220px; width: auto } .query img.pixels { width: 160px } .query blockquote { margin: 0 }
blockquote { margin: .3rem 0; padding-left: .7rem; border-left: 3px solid var(--line) }
.found { padding-left: 0; list-style: none; margin: .6rem 0 0 } .found li { margin: .25rem 0 }
.found .right { color: var(--good); font-weight: 700 } .found .wrong { color: var(--bad); font-weight: 700 }
.thumbs { display: grid; grid-template-columns: repeat(4, minmax(0, 1fr)); gap: 8px; align-items: end }
.thumbs li { margin: 0; font-size: .85rem } .thumbs img { max-height: 110px; width: auto }
.thumbs img.pixels, .thumbs img.photo { width: 100%; max-height: none }
.hit img { outline: 3px solid var(--good); outline-offset: 1px }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 8px } .pair img { width: 100% }
.clip img { width: 100%; height: 90px; image-rendering: auto } audio { width: 100%; height: 40px; margin-top: 6px }
.words { display: grid; grid-template-columns: repeat(auto-fill, minmax(104px, 1fr)); gap: 10px }
.words figcaption { margin: .1rem 0 0; text-align: center }
.strips { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(300px, 100%), 1fr)); gap: 12px }
.map rect { fill-opacity: .16; stroke-width: .8 }
.map text { font-size: 5px; fill: #fff; paint-order: stroke; stroke: #000;
  stroke-width: 1.2px; text-anchor: middle; dominant-baseline: central }
.heat { display: grid; grid-template-columns: 4.5em minmax(0, 1fr); gap: 2px 8px; align-items: center;
  font-size: .85rem }
.heat img { width: 100%; height: 44px; image-rendering: pixelated; background: var(--panel); border-radius: 0 }
.decoded { color: var(--muted) } ol.captions { padding-left: 1.4rem; max-width: 100ch }
mark { background: none; color: var(--bad); font-weight: 600; text-decoration: underline wavy 1px }
details { margin: .5rem 0 } summary { cursor: pointer; color: var(--accent); padding: .25rem 0 }
ul.left-out { padding-left: 1.1rem }
@media print { nav, audio { display: none } .card { break-inside: avoid } }
"""
