// Package bench holds what a benchmark of warmboot found: the machine it ran on, every single sample with its phases, and
// the ways to show them: a table, a picture and JSON. Nothing is averaged away before it is stored; percentiles are
// computed from the samples whenever they are shown.
package bench

import (
	"encoding/json"
	"io"
	"time"

	"warmboot"
	"warmboot/api"
)

// Options says what to measure.
type Options struct {
	Runs       int    // warm creates, and floor restores if Floor is set
	Cold       int    // cold creates
	Concurrent int    // warm creates at once, in a run of its own; 0 leaves that out
	Floor      bool   // also restore the same files with the bare VMM commands, interleaved with the warm creates
	Image      string // OCI image to run; empty lets the benchmark choose
	BootOnly   bool   // a boot is over when Docker has answered: no container is started in it, and Sample.Running is 0
}

// Result is one benchmark. All durations are in seconds, all sizes in bytes.
type Result struct {
	Machine Machine   `json:"machine"`
	Date    time.Time `json:"date"`
	Image   string    `json:"image"` // the OCI image that the containers ran

	Warm  []Sample `json:"warm"`
	Cold  []Sample `json:"cold"`
	Floor []Sample `json:"floor,omitempty"` // bare VMM commands on the same snapshot, to Docker's first answer

	Concurrent *Concurrent `json:"concurrent,omitempty"`

	// CloneDisk are the times it took to clone a data disk.
	CloneDisk []float64 `json:"clone_disk_seconds,omitempty"`
	// SnapshotPause is the time from the pause of the machine to a resumable artifact; 0 if it was not measured.
	SnapshotPause float64 `json:"snapshot_pause_seconds,omitempty"`
	// ServeRSS is the resident memory of an idle `warmboot serve`; 0 if it was not measured.
	ServeRSS int64 `json:"serve_rss_bytes,omitempty"`
}

// Machine describes where the benchmark ran.
type Machine struct {
	CPU         string `json:"cpu"`
	Cores       int    `json:"cores"`
	MemoryBytes int64  `json:"memory_bytes"`
	Kernel      string `json:"kernel"`
	VMM         string `json:"vmm"`         // "qemu-7.2.22", "v1.16.1" for Firecracker
	Accelerator string `json:"accelerator"` // "kvm" or "tcg"
	GoVersion   string `json:"go_version"`
	Warmboot    string `json:"warmboot_version"`

	// Of the VMM's binary and of the runtime image: their SHA-256. Results of earlier versions do not have these.
	VMMDigest      string `json:"vmm_sha256,omitempty"`
	ImageDigest    string `json:"runtime_image_digest,omitempty"`
	SnapshotFormat string `json:"snapshot_format,omitempty"` // the VMM's
	Network        string `json:"network,omitempty"`         // "tap" if microVMs have TAPs
}

// Sample is one boot.
type Sample struct {
	// Ready is the time from the request to Docker's first answer, by the clock of whoever asked.
	Ready float64 `json:"ready_seconds"`
	// Running is the time from the request to the container's command having started; 0 for a floor sample, which
	// runs no container, and where nobody waited for it.
	Running float64 `json:"running_seconds,omitempty"`
	// Phases are the timed steps, in order, without time between them. What they do not cover is before and after: the control plane's and the
	// network's.
	Phases []api.Phase `json:"phases"`
}

// Concurrent is a run of several warm creates at once.
type Concurrent struct {
	Count    int      `json:"count"`
	AllReady float64  `json:"all_ready_seconds"` // from the first request to the last container's Docker answering
	Cold     int      `json:"cold"`              // how many fell back to a cold boot
	Samples  []Sample `json:"samples"`
}

// Phase returns how long the named phase took, and false if the sample has no such phase.
func (s Sample) Phase(name warmboot.PhaseName) (float64, bool) {
	for _, p := range s.Phases {
		if p.Name == string(name) {
			return p.Seconds, true
		}
	}
	return 0, false
}

// Boot is the time from the first step of the boot, the copy of the disk, to Docker's answer: what somebody has to do who has no control plane.
func (s Sample) Boot() float64 {
	var sum float64
	for _, name := range bootPhases {
		d, _ := s.Phase(name)
		sum += d
	}
	return sum
}

// VMMToDocker is the time from the start of the VMM to Docker's answer: Boot without the disk, which warmboot and a restore by hand copy each in its own way.
func (s Sample) VMMToDocker() float64 {
	disk, _ := s.Phase(warmboot.PhaseDisk)
	return s.Boot() - disk
}

// Overhead is the control plane's share of the time to Docker's answer: all that is spent neither by the VMM nor by the guest.
// Cloning the disk is part of it.
func (s Sample) Overhead() float64 {
	rest := s.Ready
	for _, name := range []warmboot.PhaseName{
		warmboot.PhaseVMM, warmboot.PhaseRestore, warmboot.PhaseReidentify, warmboot.PhaseBoot, warmboot.PhaseDocker,
	} {
		d, _ := s.Phase(name)
		rest -= d
	}
	return max(rest, 0)
}

// WriteJSON writes the whole result, indented. ReadJSON reads it again.
func WriteJSON(w io.Writer, r Result) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(r)
}

// ReadJSON reads what WriteJSON wrote. A field that Result does not have is an Invalid error: it was written by another version.
func ReadJSON(in io.Reader) (Result, error) {
	var r Result
	dec := json.NewDecoder(in)
	dec.DisallowUnknownFields()
	if err := dec.Decode(&r); err != nil {
		return Result{}, warmboot.Errorf(warmboot.Invalid, "read benchmark", "this is not the JSON of a warmboot benchmark (%w); make one with `warmboot bench -o json`", err)
	}
	return r, nil
}
