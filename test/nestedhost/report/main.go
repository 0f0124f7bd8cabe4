// Command report passes the output of `go test -v` on, and writes what came of it as JSON: which Firecracker was tested, and how each test ended.
//
//	go test -v ./test/nestedhost | go run ./test/nestedhost/report -firecracker BINARY -jailer BINARY -o result.json
//
// It fails if a test has, or if none has run.
package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"time"

	"warmboot/internal/vmm/probe"
)

// Report is the result's form.
type Report struct {
	Date        time.Time `json:"date"`
	Warmboot    string    `json:"warmboot"` // what `git describe` says of it
	Machine     Machine   `json:"machine"`  // on which the nested hosts ran
	Firecracker Binary    `json:"firecracker"`
	Jailer      Binary    `json:"jailer"`
	Passed      int       `json:"passed"`
	Failed      int       `json:"failed"`
	Skipped     int       `json:"skipped"`
	Tests       []Test    `json:"tests"` // in the order in which they ended; those that ran in a nested host stand before the one that ran them
}

// Machine is where it was.
type Machine struct {
	CPUs int    `json:"cpus"`
	QEMU string `json:"qemu"` // its version
}

// Binary is a program that was tested.
type Binary struct {
	Version        string `json:"version"` // "v1.16.1"
	SnapshotFormat string `json:"snapshot_format,omitempty"`
	SHA256         string `json:"sha256"`
}

// Test is how one has ended.
type Test struct {
	Name    string  `json:"name"`
	Outcome string  `json:"outcome"` // "pass", "fail" or "skip"
	Seconds float64 `json:"seconds"`
}

func main() {
	var r Report
	out := flag.String("o", "", "`file` for the result")
	firecracker := flag.String("firecracker", "", "the `binary` that is tested")
	jailer := flag.String("jailer", "", "its jailer's `binary`")
	flag.StringVar(&r.Warmboot, "warmboot", "", "the `version` of warmboot")
	flag.Parse()
	if err := r.run(os.Stdin, os.Stdout, *firecracker, *jailer, *out); err != nil {
		fmt.Fprintln(os.Stderr, "report:", err)
		os.Exit(1)
	}
}

func (r *Report) run(in io.Reader, out io.Writer, firecracker, jailer, path string) error {
	if err := r.read(in, out); err != nil {
		return err
	}
	r.Date = time.Now().UTC().Truncate(time.Second)
	r.Machine.CPUs = runtime.NumCPU()
	var errs [4]error
	r.Machine.QEMU, errs[0] = version("qemu-system-x86_64", "--version", `version ([\d.]+)`)
	r.Firecracker, errs[1] = inspect(firecracker)
	r.Jailer, errs[2] = inspect(jailer)
	r.Firecracker.SnapshotFormat, errs[3] = version(firecracker, "--snapshot-version", `v?([\d.]+)`)
	if err := errors.Join(errs[:]...); err != nil {
		return err
	}
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if path != "" {
		if err := os.WriteFile(path, append(text, '\n'), 0o644); err != nil {
			return err
		}
	}
	if r.Failed > 0 || r.Passed == 0 {
		return fmt.Errorf("%d tests have passed, and %d have not", r.Passed, r.Failed)
	}
	return nil
}

// ended is a line that says how a test has ended; within another one's output it is indented. failed is
// what go test says besides, where a test's binary does not live to say it.
var (
	ended  = regexp.MustCompile(`^\s*--- (PASS|FAIL|SKIP): (\S+) \(([\d.]+)s\)$`)
	failed = regexp.MustCompile(`^(FAIL|panic: )`)
)

// read collects what there is to know from the output of go test -v, and passes it on.
func (r *Report) read(in io.Reader, out io.Writer) error {
	broken := false
	for lines := bufio.NewReader(in); ; {
		line, err := lines.ReadString('\n')
		if _, err := io.WriteString(out, line); err != nil {
			return err
		}
		line = strings.TrimRight(line, "\n")
		if m := ended.FindStringSubmatch(line); m != nil {
			seconds, err := strconv.ParseFloat(m[3], 64)
			if err != nil {
				return err
			}
			r.Tests = append(r.Tests, Test{m[2], strings.ToLower(m[1]), seconds})
			switch m[1] {
			case "PASS":
				r.Passed++
			case "FAIL":
				r.Failed++
			default:
				r.Skipped++
			}
		}
		broken = broken || failed.MatchString(line)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
	}
	if broken && r.Failed == 0 {
		return errors.New("the tests did not come to their end")
	}
	return nil
}

func inspect(binary string) (Binary, error) {
	v, err := version(binary, "--version", `(v[\d.]+\S*)`)
	if err != nil {
		return Binary{}, err
	}
	digest, err := probe.FileDigest(binary)
	return Binary{Version: v, SHA256: digest}, err
}

// version is the pattern's first group in what a program says.
func version(program, flag, pattern string) (string, error) {
	out, err := exec.Command(program, flag).CombinedOutput()
	m := regexp.MustCompile(pattern).FindSubmatch(out)
	if m == nil {
		return "", fmt.Errorf("%s %s says %q: %w", program, flag, out, cmp.Or(err, errors.New("no version")))
	}
	return string(m[1]), nil
}
