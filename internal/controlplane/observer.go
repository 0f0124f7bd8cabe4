package controlplane

import (
	"time"

	"warmboot"
)

// Observer is told what the control plane does, to count it. Its methods are called on the way of a boot: they must not block. The
// signatures need no type of this package, so that whoever counts can stand below it.
type Observer interface {
	// Boot tells of a microVM that came up, or of one that did not and why. A failed warm boot may be followed by a Fallback and
	// the Boot of a cold one.
	Boot(method warmboot.BootMethod, took time.Duration, phases []warmboot.Phase, err error)
	// Fallback tells that a cold boot follows where a warm one was wanted. reason is one of the Fallback constants, or the
	// warmboot.Code of what the restore failed with.
	Fallback(reason string)
	// Start tells of a container whose command runs, with the phases after its boot and what the snapshot saved.
	Start(method warmboot.BootMethod, took, saved time.Duration, phases []warmboot.Phase)
	// StartFailed tells of a container that could not be brought up.
	StartFailed(code warmboot.Code)
	// Build tells of a snapshot's build that has ended; err is nil once the snapshot is ready.
	Build(took time.Duration, err error)
}

// Why no snapshot could be used. A restore that was tried and failed has the code of its error instead.
const (
	FallbackNone      = "no_snapshot"
	FallbackUnhealthy = "unhealthy"
	FallbackCreating  = "still_creating"
	// The snapshot's files could not be got from another host.
	FallbackNotFetched = "not_fetched"
)

// unobserved is the Observer of a Service that was given none.
type unobserved struct{}

func (unobserved) Boot(warmboot.BootMethod, time.Duration, []warmboot.Phase, error)          {}
func (unobserved) Fallback(string)                                                           {}
func (unobserved) Start(warmboot.BootMethod, time.Duration, time.Duration, []warmboot.Phase) {}
func (unobserved) StartFailed(warmboot.Code)                                                 {}
func (unobserved) Build(time.Duration, error)                                                {}
