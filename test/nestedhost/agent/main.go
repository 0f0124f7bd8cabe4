// Command agent runs in a nested host and does what the machine outside asks for: it serves the guest API, of which only commands are used.
package main

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"warmboot/internal/guest"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	g, err := guest.New(guest.Config{Version: "nestedhost", Log: log})
	if err == nil {
		err = g.ServePort(ctx)
	}
	if err != nil && ctx.Err() == nil {
		log.Error("the agent ends", "error", err)
		os.Exit(1)
	}
}
