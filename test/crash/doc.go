// Package crash kills managers, and takes their database away. Each manager is a process of its own with everything real but the machines,
// which a host in the test's process keeps in memory: so they outlive the manager, as real ones do.
package crash
