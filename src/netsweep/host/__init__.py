"""What netsweep asks of the host: interfaces, leases, locks, files, processes and capabilities."""
