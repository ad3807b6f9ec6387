"""Sphinx extension: formulas become MathML while the book is built, so that a page needs no script; what browsers leave to the writer is done here."""
import html, re, unicodedata
from functools import lru_cache
from docutils import nodes
from latex2mathml.converter import convert

STYLES = {'double-struck': 'DOUBLE-STRUCK', 'script': 'SCRIPT', 'fraktur': 'FRAKTUR', 'bold': 'BOLD'}
NAMES = 'log|exp|sin|cos|tan|tanh|max|min|lim|sup|inf|det|arg|ln|Pr'
SPACE = '<mspace width="0.167em"></mspace>'

def letter(style, char):
    "The letter of that style; browsers know `mathvariant` no more"
    for kind in ('MATHEMATICAL ' + STYLES[style], STYLES[style]):
        for size in ('CAPITAL' if char.isupper() else 'SMALL',):
            try: return unicodedata.lookup(f'{kind} {size} {char.upper()}')
            except KeyError: pass
    return char

def mended(text):
    "Letters of their style, upright words in one piece, and a thin space after the name of a function that has no bracket"
    styles = '|'.join(STYLES)
    text = re.sub(rf'<mi mathvariant="({styles})">(\w)</mi>', lambda m: f'<mi>{letter(m[1], m[2])}</mi>', text)
    text = re.sub(r'(?:<mi mathvariant="normal">\w</mi>){2,}', lambda m: '<mi>' + ''.join(re.findall(r'>(\w)<', m[0])) + '</mi>', text)
    name = rf'<mi>(?:{NAMES})</mi>'
    text = re.sub(rf'((?:<msub>|<msup>)?{name}(?:<m[ni]>\w+</m[ni]></msu[bp]>)?)(?=<m(?:i|n|sub|sup|frac|over|sqrt|row|subsup|underover|munder)>)', rf'\1{SPACE}', text)
    return re.sub(rf'(</m(?:i|n|sub|sup|frac)>|<mo stretchy="false">&#x00029;</mo>)(?=(?:<msub>)?{name})', rf'\1{SPACE}', text)

@lru_cache(None)
def mathml(latex, display):
    "One formula, its source kept for those who copy or listen"
    source = html.escape(' '.join(latex.split()))
    return mended(convert(latex.strip(), display=display)).replace('<math ', f'<math alttext="{source}" ', 1)

def inline(self, node):
    self.body.append(mathml(node.astext(), 'inline'))
    raise nodes.SkipNode

def block(self, node):
    self.body.append(f'<div class="math-block">{mathml(node.astext(), "block")}</div>')
    raise nodes.SkipNode

def setup(app):
    app.add_html_math_renderer('mathml', (inline, None), (block, None))
    return {'parallel_read_safe': True, 'parallel_write_safe': True}
