// Command runtimeimage builds the runtime image that the tests boot, or finds the one that an earlier run has left, and prints its
// directory:
//
//	WARMBOOT_TEST_IMAGE=$(go run ./test/runtimeimage bin/warmboot-guest)
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"warmboot/internal/image"
)

// cache must be where the users that VMMs run as can reach it, which a checkout in somebody's home is not.
const cache = "/var/tmp/warmboot-test-images"

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: runtimeimage GUEST-BINARY")
		os.Exit(2)
	}
	start, last := time.Now(), ""
	built, err := image.Build(context.Background(), image.Config{
		Dir: cache, Suite: "trixie", GuestBinary: os.Args[1], Log: slog.New(slog.DiscardHandler),
		Progress: func(p image.Progress) {
			if p.Step != last {
				last = p.Step
				fmt.Fprintf(os.Stderr, "runtime image %5.1fs: %s\n", time.Since(start).Seconds(), p.Step)
			}
		},
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, "runtimeimage:", err)
		os.Exit(1)
	}
	fmt.Fprintf(os.Stderr, "runtime image: %d MiB\n", built.Image.SizeBytes>>20)
	fmt.Println(filepath.Dir(built.Image.KernelPath))
}
