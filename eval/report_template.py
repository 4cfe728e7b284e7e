"""The page of `eval.report`, as a Jinja2 template: no script, no outside reference, every image a data URI."""

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1f24; background: #fff; max-width: 1080px; margin: 2em auto;
       padding: 0 1em; }
h1 { font-size: 1.6em; margin-bottom: 0 } h2 { font-size: 1.2em; margin: 2em 0 .4em; border-bottom: 1px solid #d8dee4 }
p.fact { color: #57606a; margin: .2em 0 } p.note { color: #57606a; font-size: .9em }
table { border-collapse: collapse; font-variant-numeric: tabular-nums } th, td { padding: .2em .8em; text-align: right }
th { color: #57606a; font-weight: 600; border-bottom: 2px solid #d8dee4 }
th:first-child, td:first-child { text-align: left }
td small { color: #57606a } tr + tr td { border-top: 1px solid #eef1f4 }
figure { display: inline-block; margin: .5em 1em .5em 0; vertical-align: top }
figure img { max-width: 100%; height: auto }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(245px, 1fr)); gap: 14px }
.card { border: 1px solid #d8dee4; border-radius: 8px; padding: 10px; font-size: .88em }
.card.good { border-top: 4px solid #2da44e } .card.bad { border-top: 4px solid #cf222e }
.card > img { width: 100%; height: 150px; object-fit: cover; border-radius: 4px }
.card ol { padding-left: 1.5em; margin: .4em 0 }
.right { color: #1a7f37 } .wrong { color: #cf222e } .row { display: flex; gap: 5px; margin-top: 6px }
.row figure { margin: 0; flex: 1; text-align: center }
.row img { width: 100%; height: 62px; object-fit: cover; border-radius: 3px }
</style></head><body>
<h1>{{ title }}</h1>
{% for fact in facts %}<p class="fact">{{ fact }}</p>{% endfor %}
{% for section in tables %}
<h2>{{ section.title }}</h2>
<table><thead><tr>{% for head in section.heads %}<th>{{ head }}</th>{% endfor %}</tr></thead><tbody>
{% for row in section.rows %}<tr>{% for cell in row %}<td>{{ cell.value }}{% if cell.small %}
<small>{{ cell.small }}</small>{% endif %}</td>{% endfor %}</tr>{% endfor %}
</tbody></table>
{% if section.note %}<p class="note">{{ section.note }}</p>{% endif %}
{% endfor %}
{% for plot in plots %}
<h2>{{ plot.title }}</h2>
<figure id="{{ plot.name }}"><img class="plot" alt="{{ plot.title }}" src="{{ plot.source }}"></figure>
{% if plot.note %}<p class="note">{{ plot.note }}</p>{% endif %}
{% endfor %}
{% for group in cards %}
<h2>{{ group.title }}</h2>
<p class="note">{{ group.note }}</p>
<div class="cards">{% for card in group.cards %}
<div class="card {{ 'good' if card.good else 'bad' }}">
{% if card.image %}<img class="photo" alt="query" src="{{ card.image }}">{% endif %}
<div><b>{{ card.query }}</b><br>rank of the first match: {{ card.rank }}</div>
{% if card.texts %}<ol>{% for text in card.texts %}<li class="{{ 'right' if text.right else 'wrong' }}">{{ text.text }}
<small>{{ text.score }}</small></li>{% endfor %}</ol>{% endif %}
{% if card.images %}<div class="row">{% for found in card.images %}<figure><img class="photo" alt="retrieved"
 src="{{ found.source }}"><small class="{{ 'right' if found.right else 'wrong' }}">{{ '✓' if found.right else '✗' }}
{{ found.score }}</small></figure>{% endfor %}</div>{% endif %}
</div>{% endfor %}</div>
{% endfor %}
</body></html>
"""
