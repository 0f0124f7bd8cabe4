package guest

import (
	"encoding/json"
	"os"
	"path/filepath"

	"warmboot/internal/durable"
)

// noAutostart keeps Docker from starting a container by itself when the machine has booted on a disk that has one. By its restart policy Docker would,
// before the machine has the name and the network that the host gives it, and as it was before the host has changed it. The host starts it, and gives it
// its policy again.
func (g *Guest) noAutostart() {
	files, _ := filepath.Glob(g.path(dockerDir + "/containers/*/hostconfig.json"))
	for _, path := range files {
		if err := dropPolicy(path); err != nil {
			g.Log.Warn("Docker may start a container before its time", "file", path, "error", err)
		}
	}
}

// dropPolicy takes the restart policy out of what Docker keeps of a container, https://github.com/moby/moby/blob/v26.1.5/container/container.go
// (hostConfigFile). All else stays as it is.
func dropPolicy(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var config map[string]json.RawMessage
	if err := json.Unmarshal(text, &config); err != nil {
		return err
	}
	var policy struct{ Name string }
	if now := config["RestartPolicy"]; now != nil {
		if err := json.Unmarshal(now, &policy); err != nil {
			return err
		}
	}
	if policy.Name == "" || policy.Name == "no" {
		return nil
	}
	config["RestartPolicy"] = json.RawMessage(`{"Name":"no","MaximumRetryCount":0}`)
	if text, err = json.Marshal(config); err != nil {
		return err
	}
	return durable.Replace(path, text, 0o600) // whole or not at all: a machine can end at any time
}
