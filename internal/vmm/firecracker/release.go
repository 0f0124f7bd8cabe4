package firecracker

import (
	"cmp"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"warmboot"
)

// Release is a version of Firecracker. What follows the numbers ("-dev") counts for nothing.
type Release struct {
	Major int `json:"major"`
	Minor int `json:"minor"`
	Patch int `json:"patch"`
}

// The oldest release that the driver speaks to, and the newest whose API it knows.
var (
	oldest = Release{1, 7, 0}
	newest = Release{1, 17, 0}
)

var releaseText = regexp.MustCompile(`^v?(\d{1,4})\.(\d{1,4})(?:\.(\d{1,4}))?(?:-[0-9A-Za-z.-]+)?$`)

// ParseRelease reads "1.15.1", "v1.15.1", "1.17.0-dev" or "1.12".
func ParseRelease(text string) (Release, error) {
	m := releaseText.FindStringSubmatch(text)
	if m == nil {
		return Release{}, warmboot.Errorf(warmboot.Invalid, "read Firecracker's version", "%.40q is no version", text)
	}
	var n [3]int
	for i := range n {
		n[i], _ = strconv.Atoi(m[i+1]) // digits only; a patch that is left out is 0
	}
	return Release{n[0], n[1], n[2]}, nil
}

func (r Release) String() string { return fmt.Sprintf("%d.%d.%d", r.Major, r.Minor, r.Patch) }

// Compare is negative if r is older than o, 0 if it is the same.
func (r Release) Compare(o Release) int {
	return cmp.Or(cmp.Compare(r.Major, o.Major), cmp.Compare(r.Minor, o.Minor), cmp.Compare(r.Patch, o.Patch))
}

func (r Release) minor() Release { return Release{r.Major, r.Minor, 0} }

// knows reports whether a release has what since describes: the releases that it came with, newest last, as in "1.14.4 1.15.1
// 1.16": the last one and everything after it, and each earlier one up to the end of its own minor version, because a fix or a
// field comes to several branches at different patches. "" is what every release has.
func (r Release) knows(since string) bool {
	all := strings.Fields(since)
	if len(all) == 0 {
		return true
	}
	for i, text := range all {
		s, err := ParseRelease(text)
		if err != nil {
			panic(err) // a tag or constant in this package; its test reads them all
		}
		if i == len(all)-1 {
			return r.Compare(s) >= 0
		}
		if r.minor() == s.minor() {
			return r.Patch >= s.Patch
		}
	}
	return false
}

// fitness is how far a release can be used for what warmboot does with it.
type fitness int

const (
	fit      fitness = iota
	flawed           // machines may not work; QEMU is better where it has KVM
	unusable         // it is refused
)

// advice tells how far a release can be used, and what is known to be wrong with it, if anything is.
func (r Release) advice() (warning string, f fitness) {
	const instead = "install 1.14.4, 1.15.1, or 1.16.2 or later"
	switch {
	case r.Major != 1:
		return fmt.Sprintf("Firecracker %s has an API that this warmboot does not know; %s", r, instead), unusable
	case r.Compare(oldest) < 0:
		return fmt.Sprintf("Firecracker %s is too old: its snapshots have no version of their own; %s", r, instead), unusable
	case r.minor() == Release{1, 7, 0}:
		return fmt.Sprintf("Firecracker %s tells the guest of its devices on the kernel's command line, which a distribution's kernel does not read, and its snapshots are a preview; %s", r, instead), flawed
	case r.Compare(Release{1, 13, 0}) < 0:
		return fmt.Sprintf("snapshots are a preview in Firecracker %s; %s", r, instead), fit
	case r == Release{1, 16, 0}:
		return fmt.Sprintf("in a machine that Firecracker %s has restored the guest may be unable to send on its vsock channel, and then the machine boots cold; %s", r, instead), flawed
	case r == Release{1, 16, 1}:
		return fmt.Sprintf("after a pause without a snapshot Firecracker %s does not reach the guest any more; %s", r, instead), fit
	case r.Compare(Release{1, 14, 4}) < 0, r == Release{1, 15, 0}:
		return fmt.Sprintf("in a machine that Firecracker %s has restored the guest's clock may jump by the age of the snapshot; %s", r, instead), fit
	case r.minor().Compare(newest) > 0:
		return fmt.Sprintf("Firecracker %s is newer than what this warmboot was made for (%d.%d); if it does not work, install %[2]d.%d", r, newest.Major, newest.Minor), fit
	}
	return "", fit
}
