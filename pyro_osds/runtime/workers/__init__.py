"""Worker processes of this machine for functions that take long: started when they pay, gone when a run is over."""

from pyro_osds.runtime.workers.pool import Sent, in_this_process, num_at_once, with_workers

__all__ = ["Sent", "in_this_process", "num_at_once", "with_workers"]
