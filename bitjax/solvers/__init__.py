"""Optimisation on arrays: the problems that methods solve between training steps."""

from bitjax.solvers.adaround import adaround_codes as adaround_codes
from bitjax.solvers.allocation import allocate as allocate
from bitjax.solvers.base import Solution as Solution
from bitjax.solvers.code_descent import Fit as Fit
from bitjax.solvers.code_descent import fit_codes as fit_codes
from bitjax.solvers.gptq import gptq_codes as gptq_codes
from bitjax.solvers.lasso_path import lasso as lasso
from bitjax.solvers.lasso_path import lasso_path as lasso_path
from bitjax.solvers.lloyd_max import lloyd_max as lloyd_max
from bitjax.solvers.output_codes import fit_output_codes as fit_output_codes
from bitjax.solvers.plane_selection import Planes as Planes
from bitjax.solvers.plane_selection import levels_increase as levels_increase
from bitjax.solvers.plane_selection import select_planes as select_planes
from bitjax.solvers.sample_descent import fit_codes_to_samples as fit_codes_to_samples
from bitjax.solvers.scale_search import Scales as Scales
from bitjax.solvers.scale_search import free_scales as free_scales
from bitjax.solvers.scale_search import window_scales as window_scales
from bitjax.solvers.targets import z_step as z_step
