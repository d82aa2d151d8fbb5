"""The evaluation page's CSS, on top of the common page's.

Knows class names; colours are the common page's variables, light and dark.
"""

from __future__ import annotations

STYLE = """
main { overflow-wrap: anywhere; }
main > section { margin-top: 2.4rem; } h2 { margin: 0 0 .4rem; } section > p { max-width: 46rem; margin: 0 0 1rem; }
h3 { font-size: 1rem; margin: 0; }
.card > p:first-child { margin-top: 0; } .card > p { margin: 1rem 0 .2rem; }
.lead { font-size: 1.0625rem; margin: 0; max-width: 52rem; }
.card { background: var(--card); border: 1px solid var(--grid); border-radius: .6rem; padding: 1rem; min-width: 0; }
:focus-visible { outline: 2px solid var(--s1); outline-offset: 2px; border-radius: .2rem; }
summary { cursor: pointer; font-size: .9375rem; color: var(--faint); margin-top: .8rem; width: fit-content; }

.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 10.5rem), 1fr)); gap: .8rem; margin: 1.4rem 0 0; }
.tiles > div { background: var(--card); border: 1px solid var(--grid); border-radius: .6rem; padding: .7rem .9rem; }
.tiles dt { font-size: .8125rem; color: var(--faint); } .tiles dd { margin: 0; font-size: 1.375rem; font-weight: 600; line-height: 1.35;
  font-variant-numeric: tabular-nums; }
.tiles dd small { display: block; font-size: .8125rem; font-weight: 400; color: var(--faint); line-height: 1.4; }
.tiles .alert { border-color: var(--bad); box-shadow: inset .25rem 0 var(--bad); } .tiles .alert dd { color: var(--bad); }

.bars { display: grid; } .bar { display: grid; grid-template-columns: 12rem minmax(0, 1fr) 17rem; gap: .2rem 1rem;
  align-items: center; }
.bar .name { font-weight: 600; } .bar .figure { font-variant-numeric: tabular-nums; font-size: .9375rem; }
.bar .figure .faint { margin-left: .4rem; } .axis .track { grid-column: 2; }
.track, .scatter { overflow: visible; } svg.track, svg.scatter { width: 100%; height: auto; }
.grid { stroke: var(--grid); } .fill { fill: var(--s1); fill-opacity: .75; } .whisker { stroke: var(--ink); stroke-width: 1.5; }
.failures { stroke: var(--bad); stroke-width: 2; stroke-dasharray: 3 2; }
.dot { fill: var(--tone); fill-opacity: .4; } .dot:hover { fill-opacity: 1; } .crowd { fill: var(--faint); fill-opacity: .28; }
circle.pooled { fill: var(--tone); stroke: var(--card); stroke-width: 1.5; } line.pooled { stroke: var(--tone); stroke-width: 2.5; }
.t1 { --tone: var(--s1); } .t2 { --tone: var(--s2); } .t3 { --tone: var(--s3); } .t4 { --tone: var(--s4); }
.t5 { --tone: var(--s5); } .t6 { --tone: var(--s6); }
.card > .keys { margin: 0 0 .6rem; } .keys .key i { height: .6rem; width: .6rem; border-radius: 50%; }

.lists { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 18rem), 1fr)); gap: 1rem; }
.lists ol { list-style: none; margin: .7rem 0 0; padding: 0; display: grid; gap: .1rem; }
.lists li { position: relative; display: flex; justify-content: space-between; gap: 1rem; padding: .1rem .45rem; line-height: 1.5; }
.lists li::before { content: ""; position: absolute; inset: 0 auto 0 0; width: var(--share); background: var(--tone); opacity: .16;
  border-radius: .25rem; }
.lists li > * { position: relative; } .lists li span { min-width: 0; } .lists li b { font-weight: 500;
  font-variant-numeric: tabular-nums; }
.arrow { color: var(--faint); padding: 0 .35rem; }

.clips { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 32rem), 1fr)); gap: .8rem; }
.clip { display: grid; gap: .55rem; align-content: start; }
.clip header { display: flex; flex-wrap: wrap; gap: .15rem .9rem; align-items: baseline; }
.clip header span { font-size: .875rem; color: var(--faint); font-variant-numeric: tabular-nums; }
.clip audio { width: 100%; max-width: 28rem; height: 2.25rem; }
.card > .diff { margin: 0; font-size: 1.0625rem; line-height: 1.75; }
.diff .place { display: inline-flex; flex-direction: column; vertical-align: middle; line-height: 1.3; margin: .15rem .1rem;
  padding: .05rem .3rem; max-width: 100%; }
.diff .place, .diff > del, .diff > ins { border-radius: .3rem; background: color-mix(in srgb, var(--grid) 45%, transparent); }
.diff > del, .diff > ins { padding: .1rem .3rem; box-decoration-break: clone; -webkit-box-decoration-break: clone; }
.diff del, .key del { color: var(--bad); text-decoration: line-through; text-decoration-thickness: 1px; }
.diff ins, .key ins { color: var(--s3); text-decoration: underline; text-decoration-thickness: 2px; text-underline-offset: .18em; }
.pass { color: var(--s3); }
.none { font-style: italic; color: var(--faint); }
.failed { margin: .6rem 0 0; padding-left: 1.2rem; font-size: .9375rem; } .failed li { margin: .15rem 0; }
.wide table { white-space: nowrap; margin-top: .6rem; } .wide th { font-weight: 600; } th { vertical-align: bottom; }
dl.plain { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .2rem 1.2rem; margin: 0; font-size: .9375rem; }
dl.plain dt { color: var(--faint); } dl.plain dd { margin: 0; }
@media (max-width: 46rem) {
  .bar { grid-template-columns: minmax(0, 1fr) auto; } .bar .track { grid-column: 1 / -1; grid-row: 2; } .bar .figure { text-align: right; }
  .axis .track { grid-row: auto; } .bar .figure .faint { display: block; margin: 0; font-size: .8125rem; } .bars { gap: .7rem; }
  .tiles { grid-template-columns: repeat(2, minmax(0, 1fr)); } dl.plain { grid-template-columns: minmax(0, 1fr); gap: 0; }
  dl.plain dd { margin-bottom: .4rem; }
}
@media (max-width: 22rem) { .tiles { grid-template-columns: minmax(0, 1fr); } }
@media print { .card, .clip { break-inside: avoid; } audio { display: none; } }
"""
