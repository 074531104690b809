#!/bin/sh
# GitHub Actions, self-hosted runner: sweep before and after every job, without a change to any workflow.
#
# Install it outside of the runner's directory, where only root can change it (the runner wants the ending .sh):
#
#   sudo install -m 755 github-runner-hook.sh /usr/local/sbin/netsweep-hook.sh
#
# Name it in the file .env in the runner's directory, then restart the runner:
#
#   ACTIONS_RUNNER_HOOK_JOB_STARTED=/usr/local/sbin/netsweep-hook.sh
#   ACTIONS_RUNNER_HOOK_JOB_COMPLETED=/usr/local/sbin/netsweep-hook.sh
#
# COMPLETED runs after jobs that failed or were cancelled, too. It does not run where the runner itself was killed:
# STARTED deletes what that left behind, before the next job's tests meet it.
#
# The runner calls hooks as its own user, hence sudo and the file sudoers. It runs them with "bash -e", and a hook that
# fails also fails the job, so this one always ends with 0. Hooks have no time limit; netsweep waits 30 s at most for
# the subnet lock and 5 s for the xtables lock.

sudo -n /usr/local/sbin/netsweep sweep --best-effort --format github \
  --lock-file "${TMPDIR:-/tmp}/hypeman-test-network.lock" \
  --lease-file "${TMPDIR:-/tmp}/hypeman-test-network-leases.json" ||
  echo "::warning title=netsweep::netsweep did not run (status $?); the job goes on"
