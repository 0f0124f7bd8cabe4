package controlplane_test

import (
	"strings"
	"testing"

	"warmboot"
)

// An image's files may be on any host: the first that has them says what they are.
func TestImagesOfAnyHostAreRegistered(t *testing.T) {
	one, two, three := namedHost("one", "p"), namedHost("two", "p"), namedHost("three", "p")
	lacks := func(text string) func(warmboot.Image) error {
		return func(img warmboot.Image) error {
			if img.Name == "runtime" {
				return nil
			}
			return warmboot.Errorf(warmboot.Invalid, "inspect image", "kernel %s: %s", img.KernelPath, text)
		}
	}
	one.OnInspect = lacks("there is no such file")
	c := newCluster(t, one, two, three)
	img, err := c.svc.RegisterImage(t.Context(), runtimeImage("of-two"))
	c.must(err)
	if img.Digest == "" {
		t.Errorf("%+v", img)
	}

	two.OnInspect, three.OnInspect = lacks("it is no kernel"), lacks("there is no such file")
	_, err = c.svc.RegisterImage(t.Context(), runtimeImage("of-none"))
	c.wantCode(err, warmboot.Invalid, "no host has it: one: ", "two: ", "it is no kernel", "three: ")

	one.Away(true)
	c.waitHost(one, warmboot.HostDown)
	_, err = c.svc.RegisterImage(t.Context(), runtimeImage("of-none"))
	c.wantCode(err, warmboot.Invalid, "host one is down", "it is no kernel")

	two.OnInspect = nil
	_, err = c.svc.RegisterImage(t.Context(), runtimeImage("of-two-again"))
	c.must(err)
}

func TestAnImageThatTheOnlyHostRefuses(t *testing.T) {
	p := newPlane(t, nil)
	_, err := p.svc.RegisterImage(t.Context(), warmboot.Image{Name: "elsewhere", KernelPath: "/etc/vmlinuz", RootfsPath: "/etc/rootfs.ext4"})
	p.wantCode(err, warmboot.Denied, "outside")
	if strings.Contains(err.Error(), p.host.Name+": ") {
		t.Errorf("the only host is named: %v", err)
	}
}
