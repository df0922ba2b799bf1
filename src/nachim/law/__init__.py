"""Observations to forecasts: small runs in, the loss and the optimum of a big one out, with intervals.

    from nachim.law import read, study
    reading = study(read("runs.csv"))
    loss, low, high = reading.predict(x=5e9, tokens=1e11)

Never imports torch.
"""

from nachim.law.fit import Fit, fit
from nachim.law.forms import LAWS, Chinchilla, Coupled, Law, Scale, law_named
from nachim.law.isoflop import IsoFlop, isoflop
from nachim.law.observe import Observations, concat, read
from nachim.law.select import Regime, check_regime
from nachim.law.study import Allocation, Study, study
from nachim.law.transfer import Transfer, batch_opt, data_opt, fit_transfer, lr_opt, model_opt

__all__ = [
    "LAWS",
    "Allocation",
    "Chinchilla",
    "Coupled",
    "Fit",
    "IsoFlop",
    "Law",
    "Observations",
    "Regime",
    "Scale",
    "Study",
    "Transfer",
    "batch_opt",
    "check_regime",
    "concat",
    "data_opt",
    "fit",
    "fit_transfer",
    "isoflop",
    "law_named",
    "lr_opt",
    "model_opt",
    "read",
    "study",
]
