"""Docstrings of this project as reStructuredText: they are written to be read in a terminal.

The house style has no markup but single backticks, equations between `$$`, tables in Markdown and
indented blocks. Here `*`, `|` and `_` are escaped outside code, an indented equation becomes a
literal block, an indented list of `name: text` a list, and `Source:` is set apart. What napoleon
knows (Args, Raises, Attributes, Example) is left to it; it runs after this.
"""

import re

SECTIONS = ("Args:", "Attributes:", "Returns:", "Raises:", "Example:")
_CODE = re.compile(r"``.+?``|`[^`]+`", re.DOTALL)
_SHORT = {
    r"([\w.]+\.)?_?Buffer \| .*?complex \| bytes \| str\]": "ArrayLike",
    r"str \| type\[[\w.]+\] \| [\w.]*dtype \| [\w.]*SupportsDType": "DTypeLike",
    r", parent: .*?, name: str \| None = None": "",
}
_LABEL = re.compile(r"(Source|Args|Example): ")
_ITEM = re.compile(r"([^\s:`]+): +\S")


def setup(app):
    app.setup_extension("sphinx.ext.autodoc")  # whose event this is
    app.connect("autodoc-process-docstring", process, priority=100)  # napoleon's is 500
    app.connect("autodoc-process-signature", shorten)
    return {"parallel_read_safe": True}


def shorten(app, what, name, obj, options, signature, returns):
    """Signatures with long types by their names, and without the fields that Flax adds."""
    del app, what, name, obj, options
    for pattern, short in _SHORT.items():
        signature = signature and re.sub(pattern, short, signature)
    return signature, returns


def process(app, what, name, obj, options, lines):
    del app, what, name, obj, options
    lines[:] = convert("\n".join(lines)).split("\n")


def convert(text: str) -> str:
    """The docstring as reStructuredText, sections as napoleon expects them."""
    out, section = [], ""
    for block in _blocks(text.split("\n")):
        first = block[0]
        if first in SECTIONS:
            section = first
            out += ([] if first == "Returns:" else [first]) + _section(section, block[1:])
        elif section and first.startswith(" "):  # a section's further paragraph
            out += _section(section, block)
        else:
            section = ""
            out += _paragraph(block)
        out.append("")
    return "\n".join(out)


def _blocks(lines):
    """Runs of lines between blank ones."""
    block = []
    for line in [*lines, ""]:
        if line.strip():
            block.append(line.rstrip())
        elif block:
            yield block
            block = []


def _section(section, block):
    if section == "Example:":
        return block
    if section == "Returns:":  # napoleon takes what stands before a colon for a type
        return [f":returns: {escape(' '.join(line.strip() for line in block))}"] if block else []
    lines = escape("\n".join(block)).split("\n")
    # napoleon escapes the stars of *args itself.
    return [
        re.sub(r"^(\s*)((?:\\\*)+)(?=\w+:)", lambda m: m[1] + "*" * m[2].count("*"), x)
        for x in lines
    ]


def _paragraph(block):
    if block[0].lstrip().startswith(">>>"):
        return block
    if block[0].startswith("|"):
        return _table(block)
    if block[0].startswith(" "):
        return _indented(block)
    if block[0].startswith("$$"):
        equation = "\n".join(block).split("$$")[1]
        return [".. math::", "", *(f"   {line.strip()}" for line in equation.split("\n"))]
    flush = next((i for i, line in enumerate(block) if i and line.startswith(" ")), len(block))
    head, rest = block[:flush], block[flush:]
    if not rest and not _LABEL.match(head[0]):
        return escape("\n".join(head)).split("\n")
    if head[-1].endswith(":"):  # "Modes:" and its list
        return [*escape("\n".join(head)).split("\n"), "", *_indented(rest)]
    # "Source: ..." and the like, continued with an indent.
    label, found, text = " ".join(line.strip() for line in block).partition(": ")
    return [f"**{label}:** {escape(text)}" if found else escape(label)]


def _indented(block):
    """A list of `name: text` if every line at the block's indent opens an item, else verbatim."""
    indent = min(len(line) - len(line.lstrip()) for line in block)
    block = [line[indent:] for line in block]
    opening = [line for line in block if not line.startswith(" ")]
    if not all(_ITEM.match(line) for line in opening):
        return ["::", "", *(f"   {line}" for line in block)]
    items = []
    for line in block:
        if line.startswith(" "):
            items[-1] += " " + line.strip()
        else:
            items.append(line)
    pairs = (item.partition(": ") for item in items)
    return [f"* ``{name}``: {escape(text)}" for name, _, text in pairs]


def _table(block):
    rows = [[cell.strip() for cell in re.split(r" \| ", line.strip("| "))] for line in block]
    lines = [".. list-table::", "   :header-rows: 1", ""]
    for row in [rows[0], *rows[2:]]:
        lines += [f"   {'*' if i == 0 else ' '} - {escape(cell)}" for i, cell in enumerate(row)]
    return lines


def escape(text: str) -> str:
    """Text whose only markup is code between backticks, which becomes a literal or a link."""
    done, at = [], 0
    for found in _CODE.finditer(text):
        done.append(_plain(text[at : found.start()]))
        code = " ".join(found[0].strip("`").split())
        # Names in full are links where the reference has them.
        public = re.fullmatch(r"bitjax(\.\w+)+", code)
        done.append(f":py:obj:`{code}`" if public else f"``{code}``")
        at = found.end()
        if text[at : at + 1].isalnum():  # markup must end at a word's end
            done.append("\\ ")
    return "".join([*done, _plain(text[at:])])


def _plain(text):
    text = re.sub(r"(\*\w+\*)|([*|\\])", lambda m: m[1] or "\\" + m[2], text)  # *word* may stay
    return re.sub(r"_(?!\w)", r"\\_", text)
