"""The costs of a program's sites, from shapes alone."""

import math

from bitjax.costs.site import SiteCost
from bitjax.program.program import Program


def costs_of(program: Program, batch: int) -> dict[str, SiteCost]:
    """`{site: SiteCost}` in forward order, for a program that takes `batch` examples."""
    found = {site: _free(program, site) for site in program.sites}
    for product in program.products:
        for operand in product.operands.values():
            whole = sum(math.prod(site.shape) for site in operand.origins.values())
            for site in operand.origins.values():
                elements = math.prod((*site.shape, *site.lengths))
                # Kernels side by side have their parts of the work.
                macs = product.macs * product.times * math.prod(site.shape) // max(1, whole)
                if site.role != "kernel":
                    elements = operand.elements * product.times // batch
                    macs = product.macs * product.times
                before = found[site.name]
                found[site.name] = before._replace(
                    macs=before.macs + macs // batch,
                    elements=max(before.elements, elements),
                    filters=before.filters or product.filters,
                )
        for held in product.held.values():
            name, work = held.site.name, product.macs * product.times // batch
            found[name] = found[name]._replace(macs=found[name].macs + work)
            for operand in product.operands.values():
                own = operand.site.name
                found[own] = found[own]._replace(partner=name)
    return found


def _free(program, name):
    """The cost of a site before its products are counted."""
    site, source = program.sites[name], program.sources[name]
    count = max(1, math.prod(site.lengths))
    return SiteCost(0, 0, 0, source, site.layer, site.role, count)
