"""The operator's effects: what turns a pure plan into a cluster.

Promise: every effect stands behind a Protocol of `ports`; everything between two effects is pure and tested without a cluster.
A write is made only on a fresh observation, only where it changes something, and only while this process holds the Lease.
"""
