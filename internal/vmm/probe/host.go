package probe

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os"
	"strings"

	"warmboot"
	"warmboot/internal/vmm"
)

// SetKVM fills in what a snapshot that is made under KVM on this host is tied to.
func SetKVM(op string, caps *vmm.Capabilities) error {
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return warmboot.Errorf(warmboot.Internal, op, "%w", err)
	}
	caps.Accelerator, caps.KernelRelease = "kvm", strings.TrimSpace(string(release))
	if caps.CPUModel, err = HostCPU(); err != nil {
		return warmboot.Errorf(warmboot.Internal, op, "%w", err)
	}
	return nil
}

// HostCPU tells apart processors between which a snapshot must not be moved.
func HostCPU() (string, error) {
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "", err
	}
	fields := map[string]string{}
	for line := range strings.Lines(string(text)) {
		if strings.TrimSpace(line) == "" {
			break // the first processor's lines end here
		}
		if k, v, ok := strings.Cut(line, ":"); ok {
			fields[strings.TrimSpace(k)] = strings.TrimSpace(v)
		}
	}
	return strings.Join([]string{fields["vendor_id"], fields["cpu family"], fields["model"], fields["stepping"]}, "/"), nil
}

// FileDigest is the SHA-256 of a file, hexadecimal.
func FileDigest(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
