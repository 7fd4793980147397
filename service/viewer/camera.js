// The visitor's camera: a position, a heading and a pitch, as OpenCV axes (x right, y down, z forward; metres).

const PITCH_LIMIT = Math.PI / 3;

export class Camera {
  constructor() {
    this.position = [0, 0, 0];
    this.yaw = 0; // radians about the vertical, positive to the right
    this.pitch = 0; // radians, positive upwards
  }

  /** Heading on the ground plane: [x, z] of "forward". */
  get heading() {
    return [Math.sin(this.yaw), Math.cos(this.yaw)];
  }

  /** Move in the walker's own directions; looking up or down does not change the height. */
  move(right, down, forward) {
    const [sin, cos] = this.heading;
    this.position[0] += right * cos + forward * sin;
    this.position[1] += down;
    this.position[2] += forward * cos - right * sin;
  }

  turn(yaw, pitch) {
    this.yaw += yaw;
    this.pitch = Math.max(-PITCH_LIMIT, Math.min(PITCH_LIMIT, this.pitch + pitch));
  }

  /** world_from_camera as 16 numbers, row major; the columns are right, down, forward, position. */
  matrix() {
    const [sy, cy, sp, cp] = [Math.sin(this.yaw), Math.cos(this.yaw), Math.sin(this.pitch), Math.cos(this.pitch)];
    const [x, y, z] = this.position;
    return [
      cy, sy * sp, sy * cp, x,
      0, cp, -sp, y,
      -sy, cy * sp, cy * cp, z,
      0, 0, 0, 1,
    ];
  }

  /** Stand where a matrix stands. A roll, which a walker does not have, is dropped. */
  set(matrix) {
    this.position = [matrix[3], matrix[7], matrix[11]];
    this.yaw = Math.atan2(matrix[2], matrix[10]);
    this.pitch = Math.asin(Math.max(-1, Math.min(1, -matrix[6])));
  }
}
