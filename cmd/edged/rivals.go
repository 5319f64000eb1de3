package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/firewall"
	"edged.dev/edged/pkg/firewall/survey"
	"edged.dev/edged/pkg/media/fastpath"
)

// lookForRivals warns, when the daemon starts, of rules that drop what is for the edge and of the kernel's own gateways for its
// protocols. It returns an error where a message would be rewritten twice: a helper of the kernel gets hold of what a
// transparent listener takes over. Without CAP_NET_ADMIN nothing is seen, and nothing said: doctor says that.
func lookForRivals(c *config, log *zap.Logger) error {
	if c.only != "" || len(c.Networks) == 0 {
		return nil
	}
	root := os.DirFS("/")
	x := &exam{cfg: c, root: root, now: time.Now(), net: viewNetwork(), survey: survey.Look(root)}
	log = log.Named("firewall")
	for _, f := range slices.Concat(x.firewall(context.Background()), x.helpers(context.Background())) {
		if f.Level != fastpath.OK {
			log.Warn("others are in the way", zap.String("about", f.About), zap.String("seen", f.Text), zap.String("why", f.Why), zap.String("remedy", f.Remedy))
		}
	}
	if c.Firewall.Helpers == firewall.HelpersAccept {
		return nil
	}
	for _, p := range x.handedOver() {
		if list := x.survey.HelpersFor(p); len(list) > 0 {
			return fmt.Errorf("firewall: the kernel's helper %q rewrites what comes to %s port %d, too, by %s: %s; or say firewall.helpers: accept",
				list[0].Name, p.Proto, p.To.Port(), list[0].By, list[0].Remedy)
		}
	}
	return nil
}
