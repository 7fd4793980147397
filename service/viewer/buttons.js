// The buttons beside the picture: what they do to the world that is visited, and which of them can be used now.

import * as actions from "./actions.js";
import { getVideo } from "./api.js";
import { byId, onClick, save } from "./dom.js";
import * as key from "./key.js";
import { nameOf } from "./names.js";

const NEED_A_KEY = ["rewind", "fork", "share", "delete"]; // of the world's owner; a share link does not do

/** visit: a World; moves: what the buttons that move its camera do. */
export function wire(visit, moves) {
  const deeds = {
    ...moves,
    video: async () => save(await getVideo(visit.id, visit.finished), `${nameOf(visit.session)}.mp4`),
    rewind: () => actions.rewind(visit.session, visit.timeline.origin, visit.stream.lastFrame),
    fork: async () => visit.go(await actions.fork(visit.session, visit.timeline.frame)),
    share: () => actions.share(visit.session),
    export: () => actions.exportFile(visit.session),
    leave: () => visit.go(""),
    delete: async () => (await actions.remove(visit.session, visit.stream)) && visit.go(""),
  };
  for (const [id, deed] of Object.entries(deeds)) onClick(byId(id), deed);
  for (const id of NEED_A_KEY) byId(id).hidden = key.isShare();
}

export function draw({ visits, timeline, walk, mayWalk, finished }) {
  const isRecording = visits.mark >= 0;
  byId("record").textContent = isRecording ? "Forget recording" : "Record path";
  byId("record").classList.toggle("active", isRecording);
  byId("walk-back").hidden = walk !== null;
  byId("walk-back").disabled = visits.poses.length < 2 || !mayWalk;
  byId("stop").hidden = walk === null;
  byId("video").disabled = finished === undefined;
  byId("rewind").disabled = timeline.origin === null || walk !== null;
  byId("fork").textContent = timeline.frame === null ? "Fork" : "Fork here";
}
