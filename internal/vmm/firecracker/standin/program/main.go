// Program is the stand-in as a program that needs nothing else on its file system, as a jail demands; a test binary may need libraries.
package main

import (
	"fmt"
	"os"

	"warmboot/internal/vmm/firecracker/standin"
)

func main() {
	standin.Run()
	fmt.Fprintln(os.Stderr, "this program is for tests, which give it a name and a profile")
	os.Exit(1)
}
