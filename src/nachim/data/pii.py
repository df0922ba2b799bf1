"""What tells of persons, found by its form and, where it has a checksum, by that; and masked.

Nothing is taken for a card, an account or an address by its digits alone: cards pass Luhn's check and begin and are as
long as an issuer's, accounts pass ISO 13616's check and are as long as their country's, addresses of the Internet are
public ones, and telephone numbers are written as such.
"""

from __future__ import annotations

import functools
import ipaddress
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

_IBAN_LENGTH = {
    **{"AD": 24, "AE": 23, "AL": 28, "AT": 20, "AZ": 28, "BA": 20, "BE": 16, "BG": 22, "BH": 22, "BR": 29, "BY": 28},
    **{"CH": 21, "CR": 22, "CY": 28, "CZ": 24, "DE": 22, "DK": 18, "DO": 28, "EE": 20, "EG": 29, "ES": 24, "FI": 18},
    **{"FO": 18, "FR": 27, "GB": 22, "GE": 22, "GI": 23, "GL": 18, "GR": 27, "GT": 28, "HR": 21, "HU": 28, "IE": 22},
    **{"IL": 23, "IQ": 23, "IS": 26, "IT": 27, "JO": 30, "KW": 30, "KZ": 20, "LB": 28, "LC": 32, "LI": 21, "LT": 20},
    **{"LU": 20, "LV": 21, "MC": 27, "MD": 24, "ME": 22, "MK": 19, "MR": 27, "MT": 31, "MU": 30, "NL": 18, "NO": 15},
    **{"PK": 24, "PL": 28, "PS": 29, "PT": 25, "QA": 29, "RO": 24, "RS": 22, "SA": 24, "SC": 31, "SE": 24, "SI": 19},
    **{"SK": 24, "SM": 27, "SV": 28, "TL": 23, "TN": 24, "TR": 26, "UA": 29, "VA": 22, "VG": 24, "XK": 20},
}
"""Characters of an account number, by country (the registry of ISO 13616)."""
_CARD = re.compile(
    r"4\d{12}(?:\d{3}(?:\d{3})?)?|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}|3[47]\d{13}"
    r"|3(?:0[0-5]|[68]\d)\d{11}|6(?:011|5\d\d|4[4-9]\d)\d{12}|35(?:2[89]|[3-8]\d)\d{12}|62\d{14,17}"
)
"""Visa, Mastercard, American Express, Diners Club, Discover, JCB, UnionPay: how their numbers begin and how long."""


def luhn(digits: str) -> bool:
    """Whether digits pass the check of ISO/IEC 7812-1 annex B: every second from the right doubled, the sum in tens."""
    doubled = (2 * int(digit) if place % 2 else int(digit) for place, digit in enumerate(reversed(digits)))
    return bool(digits) and sum(value - 9 * (value > 9) for value in doubled) % 10 == 0


def iban(text: str) -> bool:
    """Whether this is an account number of ISO 13616: its country's length, and 1 modulo 97 (ISO 7064)."""
    account = text.replace(" ", "")
    if len(account) != _IBAN_LENGTH.get(account[:2]):
        return False
    return int("".join(str(int(sign, 36)) for sign in account[4:] + account[:4])) % 97 == 1


def _card(text: str) -> bool:
    digits = re.sub(r"[ -]", "", text)
    separators = set(re.findall(r"[ -]", text))
    return len(separators) <= 1 and len(set(digits)) > 1 and bool(_CARD.fullmatch(digits)) and luhn(digits)


def _public(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).is_global
    except ValueError:
        return False


def _telephone(text: str) -> bool:
    return 8 <= sum(sign.isdigit() for sign in text) <= 15


def _always(text: str) -> bool:
    return True


@dataclass(frozen=True)
class Form:
    """A way in which something is written, and `hints`, one of which stands in every text that has it.

    `hint` is a pattern that is found in every such text, and found fast: it begins with a sign that is rare.
    """

    pattern: str
    hints: tuple[str, ...] = ()
    hint: str = ""

    def may_stand_in(self, text: str) -> bool:
        """Whether it is worth looking for."""
        if self.hints and not any(hint in text for hint in self.hints):
            return False
        return not self.hint or _joined((self.hint,)).search(text) is not None


@dataclass(frozen=True)
class Kind:
    """A kind of thing to be masked: how it is written, and what else must be true of it."""

    name: str
    forms: tuple[Form, ...]
    check: Callable[[str], bool] = _always

    def pattern(self, text: str) -> re.Pattern[str] | None:
        """What finds it in `text`, by those of its forms that may stand there; None where none does."""
        forms = tuple(form.pattern for form in self.forms if form.may_stand_in(text))
        return _joined(forms) if forms else None


@functools.cache
def _joined(patterns: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(patterns))


# A pattern begins with what it takes and looks back from there: then only such places are tried.
_KEYS = (
    Form(
        r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----[A-Za-z0-9+/=\s]{40,}?-----END (?:[A-Z]+ )*PRIVATE KEY-----",
        ("PRIVATE KEY",),
    ),
    Form(r"A(?<!\wA)(?:KIA|SIA)[A-Z2-7]{16}\b", ("AKIA", "ASIA")),  # Amazon
    Form(r"gh(?<!\wgh)[pousr]_[A-Za-z0-9]{36}\b", ("ghp_", "gho_", "ghu_", "ghs_", "ghr_")),
    Form(r"github_pat_(?<!\wgithub_pat_)[A-Za-z0-9_]{82}\b", ("github_pat_",)),
    Form(r"glpat-(?<!\wglpat-)[A-Za-z0-9_-]{20}\b", ("glpat-",)),  # GitLab
    Form(r"xox(?<!\wxox)[abprs]-[A-Za-z0-9-]{20,}\b", ("xox",)),  # Slack
    Form(r"AIza(?<!\wAIza)[A-Za-z0-9_-]{35}(?![\w-])", ("AIza",)),  # Google
    Form(r"sk-(?<!\wsk-)(?:[a-z]+-)*[A-Za-z0-9_-]{32,}(?![\w-])", ("sk-",)),  # OpenAI, Anthropic
    Form(r"sk_live_(?<!\wsk_live_)[A-Za-z0-9]{24,}\b", ("sk_live_",)),  # Stripe
    Form(r"hf_(?<!\whf_)[A-Za-z0-9]{34}\b", ("hf_",)),  # Hugging Face
    Form(r"eyJ(?<!\weyJ)[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}", ("eyJ",)),  # JSON web tokens
)
_PART = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_HEX = "[0-9a-fA-F]"
KINDS: tuple[Kind, ...] = (
    Kind("key", _KEYS),
    Kind(
        "email",
        (
            Form(
                rf"[\w+%-](?<![\w.+%-][\w+%-])[\w+%-]*(?:\.[\w+%-]+)*@(?:{_PART}\.)+"
                r"(?!(?:png|jpe?g|gif|svg|webp)\b)[A-Za-z]{2,24}\b",
                hint=r"@(?<=[\w+%-]@)[A-Za-z0-9]",
            ),
        ),
    ),
    Kind(
        "iban",
        (Form(r"[A-Z](?<![A-Za-z0-9][A-Z])[A-Z]\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?![A-Za-z0-9])"),),
        iban,
    ),
    Kind("card", (Form(r"\d(?<![\w.,/+-]\d)(?:[ -]?\d){12,18}(?![\w]|[.,/-]\d)"),), _card),
    Kind("ip", (Form(r"\d(?<![\w.:-]\d)\d{0,2}(?:\.\d{1,3}){3}(?![\w-]|\.\d)"),), _public),
    Kind(
        "ip",
        (Form(rf"{_HEX}(?<![\w.:]{_HEX}){_HEX}{{0,3}}:(?:{_HEX}{{1,4}}:){{1,6}}(?::?{_HEX}{{1,4}}){{1,7}}(?![\w:])"),),
        _public,
    ),
    Kind(
        "phone",
        (
            Form(
                r"[+(0](?<![\w+.-][+(0])(?:"
                r"(?<=\+)\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{1,4}(?:[ .-]?\d{2,4}){1,4}"  # international
                r"|(?<=\()\d{3}\) ?\d{3}[ .-]\d{4}"  # North America
                r"|(?<=0)(?:10|1[16-9]|2|[3-6]\d|70)-\d{3,4}-\d{4})(?![\w-]|\.\d)"  # Korea
            ),
        ),
        _telephone,
    ),
)
"""What is looked for, in this order: what one kind took is no longer there for the next."""


def mask(text: str) -> tuple[str, Counter[str]]:
    """The text with every finding replaced by its kind, as ``<email>``; and how many there were of each kind."""
    counts = Counter[str]()

    def replaced(kind: Kind, found: str) -> str:
        if not kind.check(found):
            return found
        counts[kind.name] += 1
        return f"<{kind.name}>"

    for kind in KINDS:
        if pattern := kind.pattern(text):
            text = pattern.sub(lambda match, kind=kind: replaced(kind, match[0]), text)
    return text, counts
