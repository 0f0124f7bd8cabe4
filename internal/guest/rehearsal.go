package guest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
)

// rehearsalName is what the image and the container of the rehearsal are called.
const rehearsalName = "warmboot-rehearsal"

// rehearseContainer lets Docker pull an image and run a container from it, as every clone will, and removes both. It proves that Docker can, and what that
// takes is then in the memory that is frozen: the programs that start a container, tens of megabytes, which every clone would have to read from its disk, and what
// Docker sets up at first use.
func (g *Guest) rehearseContainer(ctx context.Context) (err error) {
	registry, err := openRehearsalRegistry()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, registry.Close()) }()
	d, image := g.docker, registry.image()
	if err := d.pull(ctx, image); err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, d.do(context.WithoutCancel(ctx), http.MethodDelete, "/images/"+image, nil))
	}()
	config, err := json.Marshal(map[string]any{
		"Image": image,
		// As the containers have them that clones are for.
		"HostConfig": map[string]any{"NetworkMode": "host", "UTSMode": "host", "Binds": []string{"/etc/hostname:/etc/hostname"}},
	})
	if err != nil {
		return err
	}
	var created struct{ ID string }
	if err := d.send(ctx, http.MethodPost, "/containers/create?name="+rehearsalName, config, &created); err != nil {
		return err
	}
	container := "/containers/" + url.PathEscape(created.ID)
	defer func() {
		err = errors.Join(err, d.do(context.WithoutCancel(ctx), http.MethodDelete, container+"?force=1&v=1", nil))
	}()
	if err := d.do(ctx, http.MethodPost, container+"/start", nil); err != nil {
		return err
	}
	var ended struct{ StatusCode int }
	if err := d.do(ctx, http.MethodPost, container+"/wait", &ended); err != nil {
		return err
	}
	if ended.StatusCode != 0 {
		return fmt.Errorf("its command ended with %d, and not with 0", ended.StatusCode)
	}
	return nil
}

// pull lets Docker fetch an image.
func (d *docker) pull(ctx context.Context, image string) error {
	answer, err := d.open(ctx, http.MethodPost, "/images/create?fromImage="+url.QueryEscape(image), nil)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	for messages := json.NewDecoder(answer.Body); ; { // Docker has begun to answer when a pull fails
		var message struct{ Error string }
		switch err := messages.Decode(&message); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		case message.Error != "":
			return fmt.Errorf("docker cannot pull %s: %.1024s", image, message.Error)
		}
	}
}
