// Command warmboot starts containers in microVMs of their own. Everything that the packages below internal need from
// outside is constructed here.
package main

import (
	"context"
	"os"

	"warmboot/internal/cli"
)

// version is set when the program is linked.
var version = "devel"

func main() {
	os.Exit(cli.Run(context.Background(), cli.Config{
		In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Env: os.Getenv, Version: version,
		Serve: serve, Manager: manager, Agent: runAgent, BuildImage: buildImage, Bench: measure, Doctor: doctor, Fix: fix,
	}, os.Args[1:]))
}
