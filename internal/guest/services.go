package guest

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

const (
	runDir           = "/run/warmboot"
	dockerSocket     = "/run/docker.sock"
	dockerPIDFile    = "/run/docker.pid"
	dockerConfig     = "/etc/docker/daemon.json"
	containerdSocket = "/run/containerd/containerd.sock"
	containerdConfig = runDir + "/containerd.toml"
	searchPath       = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	logLimit         = 1 << 20 // bytes
)

// containerdSettings leaves out what Docker never asks containerd for; in an emulated machine every plugin's start is felt.
const containerdSettings = `version = 2
disabled_plugins = [
  "io.containerd.grpc.v1.cri",
  "io.containerd.internal.v1.opt",
  "io.containerd.internal.v1.tracing",
  "io.containerd.tracing.processor.v1.otlp",
  "io.containerd.nri.v1.nri",
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.blockfile",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
]
`

// startServices starts containerd and then dockerd, which fails without it.
func (g *Guest) startServices() {
	g.containerd = g.newService("containerd", []string{"/usr/bin/containerd", "--config", containerdConfig})
	g.dockerd = g.newService("dockerd", []string{"/usr/sbin/dockerd", "--containerd=" + containerdSocket, "--host=unix://" + dockerSocket, "--pidfile=" + dockerPIDFile})
	g.dockerd.ready = func(ctx context.Context) error {
		return waitFor(ctx, filepath.Dir(containerdSocket), func() bool { return exists(containerdSocket) })
	}
	g.containerd.start()
	g.dockerd.start()
}

func (g *Guest) newService(name string, argv []string) *service {
	return &service{
		name: name, argv: argv,
		env:       []string{searchPath, "HOME=/root"},
		output:    &logFile{path: filepath.Join(runDir, name+".log"), limit: logLimit},
		processes: g.processes, log: g.Log,
		firstPause: 200 * time.Millisecond, lastPause: 10 * time.Second, steady: 30 * time.Second,
	}
}

// writeServiceConfig writes what containerd and dockerd are started with. An image's own daemon.json wins, except that Docker
// never listens anywhere but on its unix socket.
func (g *Guest) writeServiceConfig() error {
	if err := os.WriteFile(g.path(containerdConfig), []byte(containerdSettings), 0o644); err != nil {
		return err
	}
	conf, err := g.readDockerConfig()
	if err != nil {
		return err
	}
	delete(conf, "hosts")
	for key, value := range map[string]any{
		"log-driver":     "json-file",
		"log-opts":       map[string]string{"max-size": "10m"},
		"storage-driver": "overlay2",
		"live-restore":   false,
		"userland-proxy": false,
		// Containers use the machine's own network; the wall between them is the machine's.
		"bridge":    "none",
		"iptables":  false,
		"ip6tables": false,
	} {
		if _, set := conf[key]; !set {
			conf[key] = value
		}
	}
	return g.writeDockerConfig(conf)
}

func (g *Guest) readDockerConfig() (map[string]any, error) {
	conf := map[string]any{}
	text, err := os.ReadFile(g.path(dockerConfig))
	if errors.Is(err, fs.ErrNotExist) {
		return conf, nil
	}
	if err != nil {
		return nil, err
	}
	return conf, json.Unmarshal(text, &conf)
}

func (g *Guest) writeDockerConfig(conf map[string]any) error {
	text, err := json.MarshalIndent(conf, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(g.path(dockerConfig)), 0o755); err != nil {
		return err
	}
	return os.WriteFile(g.path(dockerConfig), append(text, '\n'), 0o644)
}
