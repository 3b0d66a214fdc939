(* T03 (d). The guard: the best iterate so far. It asks nothing of the step, the set or C. *)
From mathcomp Require Import all_ssreflect all_algebra.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

(* (d) The guard: the best of the first T + 1 iterates. *)
Section Guard.
Variables (R : realFieldType) (A : Type) (f : A -> R) (x : nat -> A).

Fixpoint best T := if T is U.+1 then (if f (x T) < f (best U) then x T else best U) else x 0%N.

Theorem best_is_least T t : (t <= T)%N -> f (best T) <= f (x t).
Proof.
elim: T => [|T IH]; first by rewrite leqn0 => /eqP ->.
rewrite leq_eqVlt => /predU1P[-> | /IH le] /=; case: ltP => // lt.
by apply: le_trans (ltW lt) le.
Qed.

Theorem best_is_iterate T : exists2 t, (t <= T)%N & best T = x t.
Proof.
elim: T => [|T [t le eq]]; first by exists 0%N.
by rewrite /=; case: ifP => _; [exists T.+1 | exists t; rewrite // ltnW].
Qed.

Corollary never_worse_than_start T : f (best T) <= f (x 0%N).
Proof. exact: best_is_least. Qed.

Corollary best_never_rises T : f (best T.+1) <= f (best T).
Proof. by rewrite /=; case: ltP => // /ltW. Qed.
End Guard.
