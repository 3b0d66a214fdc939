(* T05. On a grid the iteration with eta < 1/L makes a bounded number of moves and then stands still for ever. *)
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp Require Import ring.
From awp Require Import matrix_forms T02.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section FiniteTermination.
Variables (R : realFieldType) (m n : nat) (W : 'M[R]_(m, n)) (C : 'M[R]_n).
Variables (S : 'M[R]_(m, n) -> Prop) (eta L gap low : R).
Hypotheses (symC : symmetric C) (eta_gt0 : 0 < eta) (L_bound : eig_le C L) (short : eta * L < 1).

(* gap: the smallest distance between two points of S *)
Hypotheses (gap_gt0 : 0 < gap) (separated : forall T T', S T -> S T' -> T' != T -> gap ^+ 2 <= sqnorm (T' - T)).

Local Notation f := (objective W C).
Hypothesis low_bound : forall T, S T -> low <= f T.

(* f falls strictly in every step that moves, so no point is visited twice. *)
Theorem strict_decrease T T' : S T -> pgd_step W C S eta T T' -> T' != T -> f T' < f T.
Proof.
move=> ST step neq; apply: le_lt_trans (sufficient_decrease symC eta_gt0 L_bound ST step) _.
rewrite ltr_subl_addr ltr_addl mulr_gt0 ?divr_gt0 ?ltr0n ?(rate_gt0 eta_gt0 short) //.
by rewrite lt_neqAle sqnorm_ge0 eq_sym sqnorm_eq0 subr_eq0 neq.
Qed.

Variable x : nat -> 'M[R]_(m, n).
Hypotheses (x0S : S (x 0%N)) (run : forall t, pgd_step W C S eta (x t) (x t.+1)).

Definition max_moves : R := 2%:R * (f (x 0%N) - low) / (eta^-1 - L) / gap ^+ 2.

(* Among any T steps at most max_moves are moves. *)
Theorem number_of_moves T : #|[set t : 'I_T | x t.+1 != x t]|%:R <= max_moves.
Proof.
rewrite ler_pdivl_mulr ?exprn_gt0 // mulrC.
apply: le_trans (long_moves symC eta_gt0 L_bound x0S run short low_bound (gap ^+ 2) T).
rewrite ler_pmul2l ?exprn_gt0 // ler_nat subset_leq_card //; apply/subsetP => t; rewrite !inE.
by move=> neq; apply: separated neq; apply: (iterates_feasible x0S run).
Qed.

(* So one of the first floor(max_moves) + 1 steps does not move: the solver's stop "fixed point". *)
Theorem finite_termination T : max_moves < T%:R -> exists2 t, (t < T)%N & x t.+1 = x t.
Proof.
move=> lt; have [/existsP[t /eqP eq] | /existsPn none] := boolP [exists t : 'I_T, x t.+1 == x t]; first by exists t.
have := number_of_moves T; rewrite leNgt => /negP[]; apply: (lt_le_trans lt).
rewrite (_ : [set _ | _] = [set: 'I_T]) ?cardsT ?card_ord //.
by apply/setP => t; rewrite !inE none.
Qed.

(* What does not move is a fixed point, and if ties are always broken the same way the iteration stays there. *)
Theorem stays_fixed (step : 'M[R]_(m, n) -> 'M[R]_(m, n)) t :
  (forall u, x u.+1 = step (x u)) -> x t.+1 = x t -> forall u, (t <= u)%N -> x u = x t.
Proof.
move=> rule eq u /subnKC <-; elim: (u - t)%N => [|v IH]; first by rewrite addn0.
by rewrite addnS rule IH -rule.
Qed.

Theorem stops_at_fixed_point t : x t.+1 = x t -> pgd_step W C S eta (x t) (x t).
Proof. by move=> eq; have := run t; rewrite eq. Qed.

End FiniteTermination.

(* (b) On a grid the distance is at least the smallest gap between two values of a position. Where S also prunes,
   0 is one of the values of every position. *)
Section Grid.
Variables (R : realFieldType) (m n : nat) (S : 'M[R]_(m, n) -> Prop) (V : 'I_m -> 'I_n -> seq R) (gap : R).
Hypotheses (on_grid : forall T, S T -> forall i j, T i j \in V i j).
Hypotheses (gap_gt0 : 0 < gap) (spaced : forall i j, {in V i j &, forall a b, a != b -> gap <= `|a - b|}).

Theorem grid_separated T T' : S T -> S T' -> T' != T -> gap ^+ 2 <= sqnorm (T' - T).
Proof.
move=> ST ST' neq; have /existsP[i /existsP[j neqij]] : [exists i, [exists j, T' i j != T i j]].
  apply: contra_neqT neq => /existsPn eq; apply/matrixP => i j.
  by apply/eqP/negPn; move/existsPn: (eq i); apply.
apply: le_trans (sqnorm_entry _ i j); rewrite !mxE -[X in _ <= X]real_normK ?num_real //.
rewrite ler_expn2r ?nnegrE ?normr_ge0 ?(ltW gap_gt0) //.
by apply: spaced neqij; apply: on_grid.
Qed.

End Grid.

(* (c) Any rule that moves within a finite S only where f falls: fewer moves than S has points, whatever C. *)
Section AnyDescent.
Variables (R : realFieldType) (T : eqType) (f : T -> R) (S : seq T) (x : nat -> T).
Hypotheses (inS : forall t, x t \in S) (falls : forall t, x t.+1 != x t -> f (x t.+1) < f (x t)).

Lemma never_rises t u : (t <= u)%N -> f (x u) <= f (x t).
Proof.
move/subnKC <-; elim: (u - t)%N => [|v IH]; first by rewrite addn0.
rewrite addnS; have [-> // | /falls/ltW le] := eqVneq (x (t + v).+1) (x (t + v)%N); exact: le_trans le IH.
Qed.

Lemma falls_after t u : x t.+1 != x t -> (t < u)%N -> f (x u) < f (x t).
Proof. by move=> neq lt; apply: le_lt_trans (never_rises lt) (falls neq). Qed.

Theorem moves_lt_size n : (#|[set t : 'I_n | x t.+1 != x t]| < size S)%N.
Proof.
set A := [set t : 'I_n | _]; pose visited := x n :: [seq x (val t) | t <- enum A].
have uniq_visited : uniq visited.
  rewrite /visited cons_uniq map_inj_in_uniq ?enum_uniq ?andbT; last first.
    move=> t u; rewrite !mem_enum !inE => nt nu eq; apply: val_inj; case: (ltngtP t u) => // lt.
      by have := falls_after nt lt; rewrite eq ltxx.
    by have := falls_after nu lt; rewrite eq ltxx.
  apply/negP => /mapP[t]; rewrite mem_enum inE => neq eq.
  by have := falls_after neq (ltn_ord t); rewrite eq ltxx.
have sub : {subset visited <= S} by move=> y; rewrite inE => /predU1P[-> | /mapP[t _ ->]].
by have := uniq_leq_size uniq_visited sub; rewrite /= size_map -cardE.
Qed.
End AnyDescent.
