"""Solvers as data. A new explicit Runge-Kutta method is one more `Solver` below: both backends, the command line and
the conformance tests have it at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from odenet._check import instance
from odenet._solvers.family import StagedSolver
from odenet._solvers.tableau import Number, Tableau


@dataclass(frozen=True)
class Solver(StagedSolver):
    """An explicit Runge-Kutta solver.

    Args:
        name: what a user calls it.
        tableau: its coefficients.
        summary: one line for `odenet list solvers`.
        source: where the coefficients were published.
        aliases: other names for the same method.

    Raises:
        InputError: a name that is no text, or something else in the place of a tableau.
    """

    name: str
    tableau: Tableau
    summary: str
    source: str
    aliases: tuple[str, ...] = ()

    family = "runge-kutta"

    def __post_init__(self) -> None:
        for name in ("name", "summary", "source"):
            instance(name, getattr(self, name), str, "a text")
        instance("aliases", self.aliases, tuple, "a tuple of texts")
        for alias in self.aliases:
            instance("an alias", alias, str, "a text")
        instance("tableau", self.tableau, Tableau, "an odenet.Tableau")

    @property
    def order(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Order of convergence of the solution."""
        return self.tableau.order

    def evaluations(self, steps: int) -> int:
        """Field evaluations of a solve."""
        return steps * self.stages

    @property
    def stages(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Field evaluations of one fixed step."""
        return self.tableau.step_stages

    @property
    def increments(self) -> Tableau:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The tableau of the step."""
        return self.tableau

    @property
    def estimates_error(self) -> bool:
        """Whether it has an embedded solution."""
        return self.tableau.b_low is not None


def _row(text: str) -> tuple[Number, ...]:
    """`"1/2 -3 0"` as exact numbers."""
    return tuple(Fraction(entry) for entry in text.split())


def _tableau(order: int, rows: Sequence[str], b: str, low: str | None = None, order_low: int | None = None) -> Tableau:
    """A tableau from its exact coefficients; the nodes are the row sums."""
    a = tuple(_row(row) for row in ("", *rows))
    b_low = None if low is None else _row(low)
    return Tableau(a, _row(b), tuple(Fraction(sum(row)) for row in a), order, b_low, order_low)  # pyright: ignore[reportArgumentType]


def _rounded(order: int, rows: Sequence[str], b: str, c: str, low: str, order_low: int) -> Tableau:
    """A tableau whose published coefficients are themselves rounded, so that checks are up to rounding."""

    def numbers(text: str) -> tuple[float, ...]:
        return tuple(float(Fraction(entry)) for entry in text.split())

    return Tableau(tuple(numbers(r) for r in ("", *rows)), numbers(b), numbers(c), order, numbers(low), order_low)


EULER = Solver(
    "euler",
    _tableau(1, [], "1"),
    "Euler's method: the residual network",
    "Euler 1768",
    aliases=("resnet",),
)
HEUN = Solver(
    "heun",
    _tableau(2, ["1"], "1/2 1/2", low="1 0", order_low=1),
    "Heun's method (explicit trapezoid): HeunNet",
    "Heun 1900; Sander, Ablin, Peyre 2022, section 4",
    aliases=("heunnet",),
)
MIDPOINT = Solver("midpoint", _tableau(2, ["1/2"], "0 1"), "the explicit midpoint method", "Runge 1895")
RALSTON = Solver(
    "ralston",
    _tableau(2, ["2/3"], "1/4 3/4"),
    "two stages with the least error bound",
    "Ralston 1962",
)
FEHLBERG2 = Solver(
    "fehlberg2",
    _tableau(2, ["1/2", "1/256 255/256"], "1/512 255/256 1/512", low="1/256 255/256 0", order_low=1),
    "Fehlberg's 1(2) pair",
    "Fehlberg 1969, NASA TR R-315",
)
KUTTA3 = Solver("kutta3", _tableau(3, ["1/2", "-1 2"], "1/6 2/3 1/6"), "Kutta's third-order method", "Kutta 1901")
SSPRK3 = Solver(
    "ssprk3",
    _tableau(3, ["1", "1/4 1/4"], "1/6 1/6 2/3"),
    "strong stability preserving, three stages",
    "Shu, Osher 1988",
)
BOSH3 = Solver(
    "bosh3",
    _tableau(3, ["1/2", "0 3/4", "2/9 1/3 4/9"], "2/9 1/3 4/9 0", low="7/24 1/4 1/3 1/8", order_low=2),
    "Bogacki and Shampine's 3(2) pair",
    "Bogacki, Shampine 1989",
)
RK4 = Solver("rk4", _tableau(4, ["1/2", "0 1/2", "0 0 1"], "1/6 1/3 1/3 1/6"), "the classical method", "Kutta 1901")
RK38 = Solver("rk38", _tableau(4, ["1/3", "-1/3 1", "1 -1 1"], "1/8 3/8 3/8 1/8"), "the 3/8 rule", "Kutta 1901")
DOPRI5 = Solver(
    "dopri5",
    _tableau(
        5,
        [
            "1/5",
            "3/40 9/40",
            "44/45 -56/15 32/9",
            "19372/6561 -25360/2187 64448/6561 -212/729",
            "9017/3168 -355/33 46732/5247 49/176 -5103/18656",
            "35/384 0 500/1113 125/192 -2187/6784 11/84",
        ],
        "35/384 0 500/1113 125/192 -2187/6784 11/84 0",
        low="5179/57600 0 7571/16695 393/640 -92097/339200 187/2100 1/40",
        order_low=4,
    ),
    "Dormand and Prince's 5(4) pair",
    "Dormand, Prince 1980",
)
TSIT5 = Solver(
    "tsit5",
    _rounded(
        5,
        [
            "0.161",
            "-0.008480655492356989 0.335480655492357",
            "2.8971530571054935 -6.359448489975075 4.3622954328695815",
            "5.325864828439257 -11.748883564062828 7.4955393428898365 -0.09249506636175525",
            "5.86145544294642 -12.92096931784711 8.159367898576159 -0.071584973281401 -0.028269050394068383",
            "0.09646076681806523 0.01 0.4798896504144996 1.379008574103742 -3.290069515436081 2.324710524099774",
        ],
        "0.09646076681806523 0.01 0.4798896504144996 1.379008574103742 -3.290069515436081 2.324710524099774 0",
        "0 0.161 0.327 0.9 0.9800255409045097 1 1",
        low="0.09468075576583945 0.009183565540343254 0.4877705284247616 1.234297566930479 "
        "-2.7077123499835256 1.866628418170587 0.015151515151515152",
        order_low=4,
    ),
    "Tsitouras' 5(4) pair",
    "Tsitouras 2011",
)
DOPRI8 = Solver(
    "dopri8",
    _rounded(
        8,
        [
            "1/18",
            "1/48 1/16",
            "1/32 0 3/32",
            "5/16 0 -75/64 75/64",
            "3/80 0 0 3/16 3/20",
            "29443841/614563906 0 0 77736538/692538347 -28693883/1125000000 23124283/1800000000",
            "16016141/946692911 0 0 61564180/158732637 22789713/633445777 545815736/2771057229 -180193667/1043307555",
            "39632708/573591083 0 0 -433636366/683701615 -421739975/2616292301 100302831/723423059 "
            "790204164/839813087 800635310/3783071287",
            "246121993/1340847787 0 0 -37695042795/15268766246 -309121744/1061227803 -12992083/490766935 "
            "6005943493/2108947869 393006217/1396673457 123872331/1001029789",
            "-1028468189/846180014 0 0 8478235783/508512852 1311729495/1432422823 -10304129995/1701304382 "
            "-48777925059/3047939560 15336726248/1032824649 -45442868181/3398467696 3065993473/597172653",
            "185892177/718116043 0 0 -3185094517/667107341 -477755414/1098053517 -703635378/230739211 "
            "5731566787/1027545527 5232866602/850066563 -4093664535/808688257 3962137247/1805957418 "
            "65686358/487910083",
            "403863854/491063109 0 0 -5068492393/434740067 -411421997/543043805 652783627/914296604 "
            "11173962825/925320556 -13158990841/6184727034 3936647629/1978049680 -160528059/685178525 "
            "248638103/1413531060 0",
        ],
        "14005451/335480064 0 0 0 0 -59238493/1068277825 181606767/758867731 561292985/797845732 "
        "-1041891430/1371343529 760417239/1151165299 118820643/751138087 -528747749/2220607170 1/4",
        "0 1/18 1/12 1/8 5/16 3/8 59/400 93/200 5490023248/9719169821 13/20 1201146811/1299019798 1 1",
        low="13451932/455176623 0 0 0 0 -808719846/976000145 1757004468/5645159321 656045339/265891186 "
        "-3867574721/1518517206 465885868/322736535 53011238/667516719 2/45 0",
        order_low=7,
    ),
    "Prince and Dormand's 8(7) pair, thirteen stages",
    "Prince, Dormand 1981",
)

RUNGE_KUTTA: dict[str, Solver] = {
    record.name: record for record in list(globals().values()) if isinstance(record, Solver)
}
"""odenet's own, by name."""
