package agentrpc

import (
	"net"
	"time"
)

// dialer gives up on an address that does not answer sooner than the kernel does.
var dialer = &net.Dialer{Timeout: 5 * time.Second, KeepAlive: 15 * time.Second}
