package preflight

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// tool looks for a program, in sbin too: a user's PATH often lacks it.
func tool(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/local/sbin", "/usr/sbin", "/sbin"} {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path, nil
		}
	}
	return "", err
}

// needTool checks that a program is there. severity is the status if it is not.
func needTool(name, why, pkg string, severity Status) Check {
	path, err := tool(name)
	if err != nil {
		return Check{name, severity, "not found; " + why, "apt-get install " + pkg}
	}
	return Check{name, OK, path, ""}
}

func checkQEMU(ctx context.Context, _ Config) Check {
	const name = "qemu-system-x86_64"
	check := needTool(name, "it runs the microVMs", "qemu-system-x86", Fail)
	if check.Status != OK {
		return check
	}
	out, err := exec.CommandContext(ctx, check.Detail, "--version").Output()
	if err != nil {
		return Check{name, Fail, fmt.Sprintf("%s --version: %v", check.Detail, err), "apt-get install --reinstall qemu-system-x86"}
	}
	return qemu(check.Detail, string(out))
}

var qemuVersion = regexp.MustCompile(`version (\d+)\.(\d+)(\.\d+)?`)

// qemu judges what `qemu-system-x86_64 --version` wrote. Snapshots that leave the memory in its file work as we use them from
// 7.2 on.
func qemu(path, output string) Check {
	const name = "qemu-system-x86_64"
	m := qemuVersion.FindStringSubmatch(output)
	if m == nil {
		first, _, _ := strings.Cut(output, "\n")
		return Check{name, Warn, fmt.Sprintf("%s does not tell its version (%q); 7.2 or newer is needed", path, first), "apt-get install --reinstall qemu-system-x86"}
	}
	version := strings.TrimPrefix(m[0], "version ")
	major, _ := strconv.Atoi(m[1]) // digits, by the expression
	minor, _ := strconv.Atoi(m[2])
	if major < 7 || major == 7 && minor < 2 {
		return Check{name, Fail, fmt.Sprintf("%s is version %s; 7.2 or newer is needed", path, version), "upgrade QEMU: Debian bookworm and newer have it"}
	}
	return Check{name, OK, fmt.Sprintf("%s, version %s", path, version), ""}
}

func checkQEMUImg(context.Context, Config) Check {
	return needTool("qemu-img", "it makes the data disks of microVMs under QEMU, and converts them for Firecracker", "qemu-utils", Fail)
}

func checkMkfs(context.Context, Config) Check {
	return needTool("mkfs.ext4", "it makes the data disks", "e2fsprogs", Fail)
}

const onlyBuild = "only `warmboot image build` needs it"

func checkMmdebstrap(context.Context, Config) Check {
	return needTool("mmdebstrap", onlyBuild, "mmdebstrap", Warn)
}

func checkKeyring(context.Context, Config) Check {
	const name, path = "Debian keyring", "/usr/share/keyrings/debian-archive-keyring.gpg"
	if _, err := os.Stat(path); err != nil {
		return Check{name, Warn, fmt.Sprintf("%s is not there; %s", path, onlyBuild), "apt-get install debian-archive-keyring"}
	}
	return Check{name, OK, path, ""}
}
