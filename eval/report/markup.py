"""The templates of every page: functions from content to Markup.

A string that is handed in is text and is escaped; Markup, which only these functions make, is not. A card, a photo and
a player say in words what they show in colour.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from eval.report.media import Source
from eval.report.style import STYLE

Text = str | Markup
"""What is escaped, or Markup that is not."""
POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"
"""A browser refuses everything but what the page itself holds."""
EMPTY = Markup("")


@dataclass(frozen=True)
class Section:
    """A part of a page with a heading, to which its list of contents links."""

    anchor: str
    title: str
    body: Markup
    note: Text = ""
    folded: bool = False
    """Whether its body is shown on demand."""


@dataclass(frozen=True)
class Cell:
    """One cell of a table: a value, and what stands after it in small print."""

    value: str
    small: str = ""


@dataclass(frozen=True)
class Table:
    """Heads, rows of as many cells, a caption and a note. The first cell of a row names it."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""


def joined(parts: Iterable[Text]) -> Markup:
    """Parts one after another; strings among them are escaped."""
    return EMPTY.join(parts)


def page(title: str, lead: Text, sections: Sequence[Section], policy: str = POLICY, script: Markup = EMPTY) -> str:
    """A whole page: a title, what stands first, a list of contents, and sections in their order.

    A page that a server answers may have a script, which its policy must allow.
    """
    links = [Markup('<li><a href="#{}">{}</a></li>').format(each.anchor, each.title) for each in sections]
    template = Markup(
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        '<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        "<style>{style}</style></head>\n<body><header><h1>{title}</h1>\n{lead}\n"
        '<nav aria-label="Contents"><ul>{links}</ul></nav></header>\n<main>{body}</main>\n{script}</body></html>\n'
    )
    return str(
        template.format(
            title=title,
            policy=Markup(policy),
            script=script,
            style=Markup(STYLE),
            lead=lead,
            links=joined(links),
            body=joined(section(each) for each in sections),
        )
    )


def section(content: Section) -> Markup:
    """A heading, a note below it, and the body."""
    below = note(content.note) if content.note else EMPTY
    body = folded("Show", content.body) if content.folded else content.body
    return Markup('<section id="{0}" aria-labelledby="{0}-h"><h2 id="{0}-h">{1}</h2>{2}{3}</section>\n').format(
        content.anchor, content.title, below, body
    )


def note(text: Text) -> Markup:
    """A paragraph in small print."""
    return Markup('<p class="note">{}</p>').format(text)


def folded(title: str, body: Text) -> Markup:
    """What is shown on demand."""
    return Markup("<details><summary>{}</summary>{}</details>").format(title, body)


def subheading(title: str) -> Markup:
    """A heading within a section."""
    return Markup("<h3>{}</h3>").format(title)


def verdict(sentences: Sequence[str], tone: str) -> Markup:
    """What to think, first and in large print.

    Args:
        sentences: the first is the verdict, the others its reasons.
        tone: `good`, `bad` or `open`.
    """
    first, *others = sentences
    reasons = joined(Markup("<li>{}</li>").format(each) for each in others)
    below = Markup("<ul>{}</ul>").format(reasons) if others else EMPTY
    return Markup('<div class="verdict {}" role="note"><p>{}</p>{}</div>').format(tone, first, below)


def facts(pairs: Iterable[tuple[str, Text]]) -> Markup:
    """Names with values, as a list of definitions."""
    rows = [Markup("<div><dt>{}</dt><dd>{}</dd></div>").format(name, value) for name, value in pairs]
    return Markup('<dl class="facts">{}</dl>').format(joined(rows)) if rows else EMPTY


def table(content: Table) -> Markup:
    """A table that scrolls sideways within its own frame where a page is narrow, by keyboard too."""
    heads = joined(Markup('<th scope="col">{}</th>').format(head) for head in content.heads)
    rows = joined(Markup("<tr>{}</tr>").format(_cells(row)) for row in content.rows)
    below = note(content.note) if content.note else EMPTY
    return Markup(
        '<p class="title" aria-hidden="true">{0}</p>'
        '<div class="scroll" role="region" tabindex="0" aria-label="{0}"><table>'
        "<thead><tr>{1}</tr></thead><tbody>{2}</tbody></table></div>{3}\n"
    ).format(content.title, heads, rows, below)


def _cells(row: Sequence[Cell]) -> Markup:
    first, *others = row
    cells = [Markup('<th scope="row">{}</th>').format(_value(first))]
    cells += [Markup("<td>{}</td>").format(_value(cell)) for cell in others]
    return joined(cells)


def _value(cell: Cell) -> Markup:
    small = Markup(" <small>{}</small>").format(cell.small) if cell.small else EMPTY
    return Markup("{}{}").format(cell.value, small)


def grid(items: Iterable[Text], kind: str = "cards") -> Markup:
    """Items side by side, as many as fit: `cards`, `plots` or `thumbs`."""
    return Markup('<div class="{}">{}</div>\n').format(kind, joined(items))


def image(source: Source, alt: str) -> Markup:
    """An image, whole: nothing of it is cut off."""
    kind = "pixels" if source.small else "photo"
    return Markup('<img class="{}" src="{}" width="{}" height="{}" alt="{}">').format(
        kind, source.uri, source.width, source.height, alt
    )


def figure(body: Text, caption: Text = "", name: str = "") -> Markup:
    """Anything that is looked at, with its words below."""
    below = Markup("<figcaption>{}</figcaption>").format(caption) if caption else EMPTY
    anchor = Markup(' id="{}"').format(name) if name else EMPTY
    return Markup("<figure{}>{}{}</figure>").format(anchor, body, below)


def key(names: Sequence[tuple[str, int]]) -> Markup:
    """What the colours of a plot mean: names, each with the number of its colour."""
    parts = [Markup('<span class="key k{}">{}</span>').format(colour, name) for name, colour in names]
    return Markup(" ").join(parts)


def player(source: str, spectrogram: Source, words: str) -> Markup:
    """An audio clip: its spectrogram, and controls to hear it.

    Args:
        source: data URI of the clip.
        spectrogram: of the clip.
        words: what is said or heard.
    """
    return Markup(
        '<div class="clip">{}<audio controls preload="metadata" aria-label="{}" src="{}"></audio></div>'
    ).format(image(spectrogram, f"spectrogram: {words}"), words, source)


def mark(right: bool) -> Markup:
    """Whether what was retrieved is right, as a sign and, for who hears the page, as a word."""
    sign, word = ("✓", "right") if right else ("✗", "wrong")
    return Markup('<span class="{0}"><span aria-hidden="true">{1}</span><span class="unseen">{0}</span></span>').format(
        word, sign
    )


def item(shown: Text, right: bool, score: str) -> Markup:
    """One retrieved item: words or an image, whether it is right, and its score."""
    return Markup('<li class="{}">{} {} <small>{}</small></li>').format(
        "hit" if right else "miss", mark(right), shown, score
    )


def found(items: Sequence[Markup], images: bool) -> Markup:
    """What a query retrieved, best first: images side by side, anything else line by line."""
    return Markup('<ol class="{}">{}</ol>').format("found thumbs" if images else "found", joined(items))


def card(title: Text, body: Text, tone: str = "") -> Markup:
    """A query with what belongs to it, or any other thing on its own.

    Args:
        title: in one line.
        body: below it.
        tone: `good`, `bad`, `open` or none.
    """
    return Markup('<article class="card {}"><h4>{}</h4>{}</article>\n').format(tone, title, body)
