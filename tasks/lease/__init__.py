"""A lease says who is working on something; it keeps two runs from doing the same work, and ends soon after its holder.

``value`` is what the file says, ``store`` writes it only over the version that was read, ``holding`` takes, renews and
releases it. Whoever writes first has it; the holder renews it four times within its time, and only an expired or
released lease, or one whose process is known to be dead, is taken over. Its age is told by the store's clock alone,
so that clocks of machines may differ. A released lease stays as a file, marked so: nothing is ever deleted, because a
deletion under conditions is what the fewest object stores offer.
"""

from tasks.lease.holding import Found, Holding, held, read_lease
from tasks.lease.value import LEASE_SECONDS, Lease, new_lease

__all__ = ["LEASE_SECONDS", "Found", "Holding", "Lease", "held", "new_lease", "read_lease"]
