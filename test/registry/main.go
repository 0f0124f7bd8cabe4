// Command registry serves a small busybox image from a real registry on loopback, for `make demo` and for trying things by hand:
//
//	go run ./test/registry 127.0.0.1:5055
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"warmboot/internal/localregistry"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var c localregistry.Config
	if len(os.Args) > 1 {
		c.Listen = os.Args[1]
	}
	r, err := localregistry.Serve(ctx, c)
	if err != nil {
		fmt.Fprintln(os.Stderr, "registry:", err)
		os.Exit(1)
	}
	fmt.Println(r.Image)
	<-ctx.Done()
	if err := r.Close(); err != nil {
		fmt.Fprintln(os.Stderr, "registry:", err)
		os.Exit(1)
	}
}
